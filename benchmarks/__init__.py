"""How fast, how large, how stable: scripts that print JSON. Run from a clone, not installed."""
