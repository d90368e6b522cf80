"""Measures the roles against their ceilings, every ratio within one run on one machine (docs/benchmarks.md)."""
