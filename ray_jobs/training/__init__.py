"""The TorchTrainer and what runs on a worker."""
