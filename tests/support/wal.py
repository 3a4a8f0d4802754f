"""A model of the log, which is a list, and entries to put into both."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from raftha.entry import LOG_START, Entry, EntryKind, HardState, LogPosition, make_entry
from raftha.storage.log.disk import Disk
from raftha.storage.log.wal import Wal
from tests.sim.disk import Crashed, SimulatedDisk

SEGMENT_BYTES = 16 * 1024
FOLDER = "n1/wal"


def opener(disk: Disk, folder: str = FOLDER, seed: int = 1) -> Callable[[], Wal]:
    """A function that opens the log in `folder`, each time with salts never used before."""
    salt = salts(seed)
    return lambda: Wal.open(disk, folder, segment_bytes=SEGMENT_BYTES, salt=lambda: next(salt))


def entries_after(previous: LogPosition, term: int, sizes: Sequence[int]) -> list[Entry]:
    """Entries that follow `previous`, one for each payload size."""
    entries = []
    for size in sizes:
        seed = f"{previous.index + 1}/{term}/".encode()
        payload = (seed * (size // len(seed) + 1))[:size]
        entry = make_entry(previous, term, 1000 * term, EntryKind.BATCH, payload, 1)
        entries.append(entry)
        previous = entry.position
    return entries


def salts(seed: int) -> Iterator[int]:
    """Different 64-bit numbers, the same for the same seed."""
    number = seed * 1_000_003 + 1
    while True:
        number = (number * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        yield number or 1


def read_all(wal: Wal, bytes_max: int = 5000) -> list[Entry]:
    """Every entry that the log holds."""
    entries: list[Entry] = []
    while wal.first_index + len(entries) <= wal.last_index:
        some = wal.read(wal.first_index + len(entries), bytes_max)
        assert some, "at least one entry where there is one"
        entries += some
    return entries


def reopen_cut_off(
    disk: SimulatedDisk, open_wal: Callable[[], Wal], cut: int, *, power: bool
) -> Wal:
    """Begin a recovery that is cut off at a random operation, then let one through."""
    disk.fail_after(cut, Crashed())
    try:
        wal = open_wal()
    except Crashed:
        if power:
            disk.crash()
        disk.fault = None
        wal = open_wal()
    disk.fault = None
    return wal


def segment_names(disk: Disk, folder: str = FOLDER) -> list[str]:
    """The files that hold the log."""
    return sorted(name for name in disk.listdir(folder) if not name.startswith("spare"))


def spare_names(disk: Disk, folder: str = FOLDER) -> list[str]:
    """The spare files that the log has ready."""
    return sorted(name for name in disk.listdir(folder) if name.startswith("spare"))


def fill(wal: Wal, count: int, *, term: int = 1, size: int = 1000) -> list[Entry]:
    """Append entries, one a write."""
    entries = entries_after(wal.last, term, [size] * count)
    for entry in entries:
        wal.append(None, [entry])
    return entries


class LogModel:
    """The whole log from entry 1 on as a list, and what an append that never returned may leave."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.hard_state = HardState(0, 0, 0)
        self.compacted = 0
        self._in_doubt: tuple[HardState | None, list[Entry]] | None = None

    def position(self, index: int) -> LogPosition:
        """The position after entry `index`."""
        return self.entries[index - 1].position if index else LOG_START

    def append(self, wal: Wal, hard_state: HardState | None, entries: list[Entry]) -> None:
        """Append to both; if the log raises, the append is in doubt until `check`."""
        self._in_doubt = (hard_state, entries)
        wal.append(hard_state, entries)
        self._in_doubt = None
        self.hard_state, self.entries = self._after(hard_state, entries)

    def compact(self, wal: Wal, index: int) -> None:
        """Compact both."""
        self.compacted = max(self.compacted, index)
        wal.compact(index)

    def check(self, wal: Wal) -> None:
        """The log holds what was acknowledged, and nothing that was never appended.

        An append in doubt is there up to any point: a large one is several writes.
        """
        held = read_all(wal)
        assert wal.base.index <= self.compacted
        assert wal.base == self.position(wal.base.index)
        assert wal.last_index == wal.base.index + len(held)
        assert wal.last == (held[-1].position if held else wal.base)
        if self._in_doubt is not None and not self._is(wal, held):
            hard_state, entries = self._in_doubt
            count = wal.last_index - entries[0].index + 1 if entries else 0
            assert 0 <= count <= len(entries)
            self.hard_state, self.entries = self._after(hard_state, entries[:count])
        self._in_doubt = None
        assert held == self.entries[wal.base.index :]
        assert wal.hard_state == self.hard_state

    def _is(self, wal: Wal, held: list[Entry]) -> bool:
        return held == self.entries[wal.base.index :] and wal.hard_state == self.hard_state

    def _after(
        self, hard_state: HardState | None, entries: list[Entry]
    ) -> tuple[HardState, list[Entry]]:
        kept = self.entries[: entries[0].index - 1] if entries else self.entries
        return hard_state or self.hard_state, kept + entries
