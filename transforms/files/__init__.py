"""Files: found, opened, written as shards, settled."""
