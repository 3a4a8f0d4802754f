"""What the questions share, and the readers of their results. It imports neither of them nor peers.

Theory of operation. `question` runs a question, puts systems (`systems`, `leases`) under a `load`,
and collects the `results`. A separate process makes the load; `worker` starts it and sends it
requests. It has the leader inside it, with callers that are tasks (`leader`) or threads
(`threads`); or it holds connections (`connections`); or it is `redis-benchmark`
(`redis_benchmark`); or it has no Raft at all, as the limit (`bare`). `samples` holds its latencies,
and `machine` describes where they were taken.

`failovers` makes leaders fail, also in silence (`namespaces`); `restarts` kills nodes and starts
them; `catch_up` makes a node need a snapshot. `compare` and `report` read results (`tables`,
`plots`).
"""
