"""Tests of the readers of each kind of file."""
