"""What an output holds: job records, shards, manifests, and its configuration."""
