"""Cloudflare on this machine, for the demo and for tests: R2 with event notifications, Queues, Workers AI."""
