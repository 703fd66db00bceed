"""One worker's run: session, loop, validation, logs."""
