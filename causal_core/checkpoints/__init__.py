"""What is saved, and where."""
