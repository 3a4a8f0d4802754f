"""Benchmarks: one file a question, run from the repository's root as `python -m bench.NAME`."""
