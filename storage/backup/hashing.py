"""Digests of states, computed by a worker beside what makes or reads the pairs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from raftha.storage.backup.pool import Pool
from raftha.storage.state.blocks import BLOCK_BYTES, join_blocks
from raftha.storage.state.store import Hasher, Store, StoreDigest

AHEAD = 8
"""Blocks that wait to be hashed."""


class ParallelHasher:
    """Hashes blocks of pairs in their order, on a worker of its own."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._pending: deque[Future[None]] = deque()
        self._hasher = Hasher()

    def begin_again(self) -> None:
        """Forget all blocks."""
        self._wait(0)
        self._hasher = Hasher()

    def add(self, raw: bytes, keys: int) -> None:
        """Add the next block."""
        self._pending.append(self._pool.submit(self._hasher.add_encoded, raw, keys))
        self._wait(AHEAD)

    def finish(self) -> StoreDigest:
        """Return the digest of all blocks."""
        self._wait(0)
        return self._hasher.finish()

    def close(self) -> None:
        """End the worker."""
        self._pool.shutdown(cancel_futures=True)

    def _wait(self, left: int) -> None:
        while len(self._pending) > left:
            self._pending.popleft().result()


def hash_store(
    store: Store, pool: Callable[[str, int], Pool], go_on: Callable[[], None] = lambda: None
) -> StoreDigest:
    """Read all pairs of a store, and return their digest. `go_on` may raise, to end it."""
    hasher = ParallelHasher(pool("digest", 1))
    try:
        with store.export() as export:
            for block in join_blocks(export.blocks, BLOCK_BYTES):
                hasher.add(block.raw, block.keys)
                go_on()
        return hasher.finish()
    finally:
        hasher.close()
