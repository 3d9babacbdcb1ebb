"""What the command that runs knows: its flags, which its errors may name."""

flags: set[str] = set()
"""The long flags of the running command; empty until they are parsed."""
