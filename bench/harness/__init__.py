"""What the questions share, and what reads their results. It imports neither them nor the peers.

Theory of operation. `question` runs one and collects what it finds (`results`), for which systems
(`systems`, `leases`) are put under a `load`. What makes the load is a process of its own, which
`worker` starts and tells what to do: one with the leader in it, and callers that are tasks
(`leader`) or threads (`threads`); one that holds connections (`connections`); `redis-benchmark`
(`redis_benchmark`); one with no Raft at all, the limit (`bare`). Its latencies are `samples`, and
what they were taken on is `machine`.

`failovers` takes leaders away, in silence too (`namespaces`); `restarts` kills nodes and starts
them; `catch_up` has a node need a snapshot. `compare` and `report` read results (`tables`,
`plots`).
"""
