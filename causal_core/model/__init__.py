"""The base with LoRA and the causal projection; one forward over trees."""
