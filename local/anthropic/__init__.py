"""Anthropic on this machine: messages, models, and batches of messages."""
