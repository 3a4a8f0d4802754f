"""A real file system for tests, mounted with FUSE, that loses power, fails, hangs and fills up.

    tree.py       files and folders in memory, and what of them a power loss leaves faults.py
    which operations fail, wait, or lie protocol.py   the kernel's requests and our replies through
    /dev/fuse, as bytes server.py     one mounted file system, on an event loop of its own process
    mount.py      `FaultFs`: what tests use cluster.py    a cluster of real processes on such file
    systems

`tests/sim/disk.py` is the same idea behind raftha's own seam. This one is behind the kernel: under
LMDB, page cache, memory maps and all.
"""
