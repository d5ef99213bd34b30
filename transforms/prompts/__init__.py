"""Parses lines into requests."""
