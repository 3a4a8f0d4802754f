"""Benchmarks: one file a question, run from the repository's root as `python -m bench QUESTION`.

    throughput  latency  reads  lag  failover  recovery  scale  limit       measure
    compare  report                                                         read the results

Theory of operation. `question` has what the questions share: systems (`systems`, and `peers` for
those of others) are measured in turns, each started afresh for each run. Load (`load`) is made by
processes of their own (`worker`): one with the leader in it (`leader`), one that holds connections
(`connections`), one with no Raft at all (`bare`). What came out (`samples`) is put into `results`,
a JSON file, which `compare` and `report` read.

`failover`, `catchup`, `soak` and `writes` also run by themselves, as `python -m bench.NAME`.
"""
