"""Chat messages in, response events out."""
