"""What makes a set of rows teach the wrong thing, though each of its rows is in order."""
