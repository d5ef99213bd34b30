"""Answers requests, and makes the rows of the answers."""
