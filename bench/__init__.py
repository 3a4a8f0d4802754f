"""Benchmarks, run from the repository's root: `python -m bench` lists the questions.

Theory of operation. `questions` has a file for each question. A question measures systems in turns
and starts each afresh for each run: raftha, which `harness` runs along with everything that
questions share, and the systems of `peers`. Separate processes make the load (`harness.worker`).
The result is a JSON file, which `compare` and `report` read. Imports go one way: questions, peers,
harness.
"""
