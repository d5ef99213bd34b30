"""From a request to the row of its answer."""
