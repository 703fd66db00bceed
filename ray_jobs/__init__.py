"""causal-ray on Ray: the command line, the trainer and what runs on each worker."""
