"""What a model does, with intervals."""
