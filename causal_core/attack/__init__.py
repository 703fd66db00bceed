"""An attacker that adapts: it looks for the attack that works against one model and one row."""
