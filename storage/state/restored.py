"""The state behind a RESTORE entry: other pairs, and the meta of a log that goes on.

Theory of operation. An accepted RESTORE entry (`recoveries.py`) puts the pairs of an earlier moment
in the place of the present ones. A `State` can't apply it: it has no other pairs. Its owner ends it
before the entry, takes the pairs from where they were prepared, and begins another state with them
and with `meta_behind`. A refused RESTORE changes nothing, and is applied like any other entry.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from raftha.entry import Entry
from raftha.errors import Corrupt
from raftha.storage.state.catalog_changes import Refused, Restore
from raftha.storage.state.recoveries import RecoveryRecord
from raftha.storage.state.state import State, restore_of
from raftha.storage.state.store import StoreCensus, StoreDigest, StoreExport

__all__ = ["MetaOnly", "meta_behind", "restore_of", "wanted_restore"]


def wanted_restore(state: State, entry: Entry) -> tuple[Restore, RecoveryRecord] | None:
    """The recovery that a RESTORE entry, the next one, carries out; None if it is refused."""
    restore = restore_of(entry)
    try:
        return restore, state.catalog.recoveries.restorable(restore)
    except Refused:
        return None


def meta_behind(state: State, entry: Entry) -> bytes:
    """Return the checkpoint's meta behind an accepted RESTORE entry, the next one.

    `state` is not changed.
    """
    behind = State(MetaOnly(state.meta_now()), state.machine)
    behind.is_restoring = True
    behind.apply(entry)
    return behind.freeze().meta


class MetaOnly:
    """A store that has a meta and no pairs."""

    def __init__(self, meta: bytes | None) -> None:
        self._meta = meta

    def meta(self) -> bytes | None:
        return self._meta

    def get(self, key: bytes) -> bytes | None:
        return None

    def scan(
        self, start: bytes | None, end: bytes | None, *, limit: int, reverse: bool
    ) -> list[tuple[bytes, bytes]]:
        return []

    def census(self, keys: Sequence[bytes]) -> StoreCensus:
        return StoreCensus(0, 0, 0)

    def write(self, items: Iterable[tuple[bytes, bytes | None]], meta: bytes) -> None:
        raise AssertionError("nothing is written to a store without pairs")

    def digest(
        self,
        *,
        begun: Callable[[], None] = lambda: None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> StoreDigest | None:
        raise AssertionError("a store without pairs has no digest")

    def export(self) -> AbstractContextManager[StoreExport]:
        raise AssertionError("a store without pairs can't be exported")

    def corrupt(self, detail: str) -> Corrupt:
        return Corrupt(Path("memory"), 0, detail)

    def close(self) -> None: ...
