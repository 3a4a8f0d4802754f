"""A node's store and spool without the node: what a backup is taken of."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from random import Random

from raftha.config.limits import GIB
from raftha.entry import LOG_START, EntryKind, Group, LogPosition, encode_group, make_entry
from raftha.storage.backup.crypto import OperatorKey
from raftha.storage.backup.local import LocalDestination
from raftha.storage.backup.manifest import LETTERS, StoredManifest
from raftha.storage.backup.names import label
from raftha.storage.backup.pool import thread_pool
from raftha.storage.backup.repository import open_repository
from raftha.storage.backup.source import StoreSource
from raftha.storage.backup.spool import Spool
from raftha.storage.backup.take import TakeHooks, TakeOrder, TakeResult, take
from raftha.storage.backup.uploads import Waits
from raftha.storage.log.disk import RealDisk
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.commands import pack_put
from raftha.storage.state.state import State

Pair = tuple[bytes, bytes]
GROUP = 1000
"""Commands in an entry."""
LEVEL = 3
"""How hard backups are compressed."""
LINEAGE = "0b" * 16


def pairs_of(numbers: Iterable[int], random: Random) -> Iterator[Pair]:
    """Keys of 16 bytes, and values of 256: JSON, two thirds of which are random hexadecimal digits.

    `zstd -3` compresses them to 0.4 of their size.
    """
    for number in numbers:
        fixed = b'{"id":%d,"name":"user-%d","active":true,"balance":%d,"token":"'
        start = fixed % (number, number % 5000, random.randrange(10**6))
        token = random.randbytes(86).hex().encode()
        yield b"key-%012d" % number, (start + token + b'"}').ljust(256)


class StoredState:
    """A state that is written through its log's entries, and its checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.store = CheckpointStore(folder / "state")
        self.state = State(self.store)
        self.spool = Spool(RealDisk(), str(folder / "spool"), GIB, self.state.applied)
        self._last = LOG_START
        opening = Group(0, 1, 0, 0, b"")
        self._session = self._apply([opening])
        self._numbers = count(1)

    @property
    def source(self) -> StoreSource:
        """What backups read."""
        return StoreSource(self.store, self.spool)

    @property
    def session(self) -> int:
        """The session of all writes."""
        return self._session

    @property
    def position(self) -> LogPosition:
        """The position of the last entry."""
        return self._last

    def write(self, pairs: Iterable[Pair]) -> None:
        """Put pairs, and make a checkpoint."""
        commands: list[bytes] = []
        for key, value in pairs:
            commands.append(pack_put(key, value))
            if len(commands) == GROUP:
                self._put(commands)
                commands = []
        self._put(commands)
        frozen = self.state.freeze()
        self.spool.add(frozen.position, frozen.meta, frozen.items)
        self.store.write(frozen.items, frozen.meta)
        self.spool.commit(frozen.position)
        self.state.checkpoint_done()

    def close(self) -> None:
        """Close the files."""
        self.store.close()

    def _put(self, commands: list[bytes]) -> None:
        number = next(self._numbers)
        self._apply([Group(self._session, number, number, len(commands), b"".join(commands))])

    def _apply(self, groups: list[Group]) -> int:
        payload = b"".join(map(encode_group, groups))
        commands = sum(group.count for group in groups)
        entry = make_entry(self._last, 1, 1_000_000, EntryKind.BATCH, payload, commands)
        self._last = entry.position
        return self.state.apply(entry)[0].outcome.session


def write_pairs(path: Path, state: StoredState) -> int:
    """Write all pairs to a file, as a backup has them; return the number of bytes."""
    with path.open("wb") as file, state.store.export() as export:
        for block in export.blocks:
            file.write(block.raw)
        return file.tell()


class Taking:
    """Backups of a state into a new repository in a folder."""

    def __init__(self, state: StoredState, folder: Path) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        self._state = state
        key = OperatorKey(bytes(range(32)))
        destination = LocalDestination("local", folder)
        self.repository = open_repository(
            [destination], operator=key, may_create=True, now_us=time.time_ns() // 1000
        )

    def take(self, mode: str, parent: TakeResult | None) -> tuple[float, TakeResult]:
        """Take a backup; return the seconds that it took."""
        position = self._state.position
        order = TakeOrder(
            id=position.index,
            label=label(position.time_us, LETTERS[mode], position.index),
            mode=mode,
            lineage=LINEAGE,
            node=1,
            started_us=position.time_us,
            destinations=("local",),
            parent=parent and StoredManifest(parent.manifest, parent.manifest_sha256),
            level=LEVEL,
        )
        hooks = TakeHooks(
            waits=Waits(time.monotonic, time.sleep),
            now_us=lambda: time.time_ns() // 1000,
            pool=thread_pool,
        )
        began = time.perf_counter()
        result = take(order, self._state.source, self.repository, hooks)
        return time.perf_counter() - began, result
