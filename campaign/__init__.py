"""Attacks on the package: kills, full disks, damaged files, signals, clocks that go back.

``python -m campaign`` runs them, ``python -m campaign --list`` names them; docs/reliability.md has
the results.
"""
