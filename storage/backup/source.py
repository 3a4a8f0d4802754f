"""Where a backup's data comes from: a node's store and spool, as a seam."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Protocol

from raftha.entry import LogPosition
from raftha.errors import StorageError
from raftha.storage.backup.pairs import cut_blocks
from raftha.storage.backup.spool import Spool, SpoolLost
from raftha.storage.state.blocks import Block, join_blocks
from raftha.storage.state.meta import MetaFacts, read_meta
from raftha.storage.state.store import Store


class SourceBehind(StorageError):
    """The last checkpoint is before the entry that began the backup: one must be made first."""


class SourceReading(NamedTuple):
    """The pairs of one checkpoint, or those that have changed since entry `start`.

    `keys_max`: how many pairs there are at most, for a progress bar.
    """

    position: LogPosition
    start: int
    meta: bytes
    membership: bytes
    keys_max: int
    blocks: Iterator[Block]


class Source(Protocol):
    """A node's state, as of its last checkpoint."""

    def full(self, index: int) -> AbstractContextManager[SourceReading]:
        """Read all of it, as of a checkpoint at or after entry `index`.

        SourceBehind; also from the blocks come ReadInterrupted, to begin again, and Corrupt.
        """
        ...

    def delta(self, start: int, index: int) -> AbstractContextManager[SourceReading]:
        """Read what has changed after entry `start`, up to a checkpoint at or after `index`.

        SourceBehind; SpoolLost, also from the blocks, if this node doesn't have all of it.
        """
        ...


class StoreSource:
    """The source of a node with this store, and this spool if it has one."""

    def __init__(self, store: Store, spool: Spool | None) -> None:
        self._store = store
        self._spool = spool

    @contextmanager
    def full(self, index: int) -> Iterator[SourceReading]:
        with self._store.export() as export:
            facts = self._facts(export.meta, index)
            membership = facts.membership or b""
            yield SourceReading(
                facts.position,
                0,
                export.meta,
                membership,
                export.entries,
                join_blocks(export.blocks),
            )

    @contextmanager
    def delta(self, start: int, index: int) -> Iterator[SourceReading]:
        if self._spool is None:
            raise SpoolLost("this node has no spool")
        with self._spool.reading(start) as reading:
            facts = self._facts(reading.meta, index)
            if facts.position != reading.position:
                raise SpoolLost("the spool's meta is of another position")
            membership = facts.membership or b""
            yield SourceReading(
                facts.position,
                reading.start.index,
                reading.meta,
                membership,
                reading.keys_max,
                cut_blocks(reading.pieces),
            )

    def _facts(self, meta: bytes, index: int) -> MetaFacts:
        if not meta:
            raise SourceBehind("there is no checkpoint yet")
        try:
            facts = read_meta(meta)
        except ValueError as error:
            raise self._store.corrupt(str(error)) from error
        if facts.position.index < index:
            raise SourceBehind(
                f"the last checkpoint is at entry {facts.position.index}, before {index}"
            )
        return facts
