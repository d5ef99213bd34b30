"""Batches by files, as OpenAI has them and others copy."""
