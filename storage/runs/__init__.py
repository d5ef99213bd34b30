"""Runs, the processes that work for them, and the claims of schedules."""
