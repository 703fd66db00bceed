"""A trained run in the layouts that other programs read, with what was measured of it."""
