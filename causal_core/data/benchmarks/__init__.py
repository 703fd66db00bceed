"""Test sets of others, read from files that the user has: `registry.read_benchmark`."""
