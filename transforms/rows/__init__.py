"""Asks a model about each row of somebody else's pipeline."""
