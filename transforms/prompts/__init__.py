"""From a line to the request that it stands for."""
