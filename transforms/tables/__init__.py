"""Formats other than JSONL, each read as the same tiles: a table's row is a line that holds a JSON object."""
