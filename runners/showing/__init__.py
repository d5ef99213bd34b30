"""What people see of a run: progress, summaries, logs."""
