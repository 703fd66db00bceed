"""What the terminal shows: progress, results, logs, exit codes."""
