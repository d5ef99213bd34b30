"""Cloudflare Queues, and the event notifications that arrive in them."""
