"""The objective: the table of terms and the functions behind it."""
