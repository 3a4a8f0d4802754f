"""Benchmarks, run from the repository's root: `python -m bench` lists the questions.

Theory of operation. `questions` has a file for each. A question measures systems in turns, each
started afresh for each run: ours, which `harness` has with all else that questions share, and those
of `peers`. Load is made by processes of their own (`harness.worker`). What comes out is a JSON
file, which `compare` and `report` read. Imports go one way: questions, peers, harness.
"""
