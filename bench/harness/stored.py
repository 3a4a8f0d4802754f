"""A node's store and spool without the node: what a backup is taken of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from random import Random

from raftha.config.limits import GIB
from raftha.entry import LOG_START, EntryKind, Group, LogPosition, encode_group, make_entry
from raftha.storage.backup.source import StoreSource
from raftha.storage.backup.spool import Spool
from raftha.storage.log.disk import RealDisk
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.commands import pack_put
from raftha.storage.state.state import State

Pair = tuple[bytes, bytes]
GROUP = 1000
"""Commands in an entry."""


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
