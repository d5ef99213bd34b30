"""Runs from their checks to their ends."""
