"""Commands that look at outputs, sources, and models."""
