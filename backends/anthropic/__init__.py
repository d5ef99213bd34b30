"""Anthropic: the Messages API, and batches of messages."""
