"""Faults on the real stack: processes killed or frozen, weights and scores spoiled, disks filled, nodes lost.

Nothing in the product knows of these tests. A fault comes from outside (a signal, a full disk, a lost node) or from
what a user may plug in (a reward head), at a moment that a run's own status tells (harness.py).
`scripts/measure_reliability.py` runs them and writes the table of docs/reliability.md from what they report.
"""
