"""Answers that must be JSON, or keep to a JSON Schema."""
