"""`causal plan`."""
