"""Queues, and R2's event notifications."""
