"""Everything that raftha keeps on disk: the log, the state, and what a command does to it.

Theory of operation. `disk` is the seam to the file system, `wal` is the Raft log on top of it
(`segment` has its bytes, `spares` its empty files, `recovery` reads it back). `commands` and
`machine` say what a committed entry does, `state` applies it, and `checkpoint` makes the result
durable in LMDB. Nothing here knows Raft or the network. Import it as `raftha.storage`, never as
`storage`: those would be two different packages.
"""
