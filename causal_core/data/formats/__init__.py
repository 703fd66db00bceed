"""Readers of the kinds of file that rows come in, one file each; `table` has them by suffix."""
