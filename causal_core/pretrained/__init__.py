"""What comes from outside: model directories, tokenizers, base weights, the demo model."""
