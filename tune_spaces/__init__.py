"""Search over loss weights, LoRA rank and other config fields within a memory budget."""
