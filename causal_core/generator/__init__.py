"""Made-up triplets whose labels code computes: tasks, attacks, splits."""
