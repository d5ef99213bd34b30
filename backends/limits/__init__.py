"""What holds calls back: concurrency, rates, pauses, retries, array sizes."""
