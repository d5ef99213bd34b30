"""Cloudflare on this machine, for the demo and for tests: R2 with event notifications, Queues, Workers AI.

Beside it, the APIs of OpenAI and Anthropic with their batches.
"""
