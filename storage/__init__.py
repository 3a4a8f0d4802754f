"""Everything that raftha keeps on disk: the log, the state, and what a command does to it.

    log        the Raft log: `disk` is the seam to the file system, `wal` is the log on top of it
               (`segment` has its bytes, `spares` its empty files, `recovery` reads it back)
    state      `commands` and `machine` say what a committed entry does, `state` applies it, and
               `checkpoint` makes the result durable in LMDB
    directory  both together: a node's identity, replay, snapshots, and the healing of damage
    backup     copies outside the cluster: destinations, repository, frames, encryption

This package depends on neither Raft nor the network. Import it as `raftha.storage`, never as
`storage`: Python would load the two names as two different packages.
"""
