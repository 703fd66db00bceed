"""`causal doctor`."""
