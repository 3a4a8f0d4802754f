"""As `test_asserts.py`, for the log on disk, the state and the identity."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from raftha.entry import LOG_START, HardState
from raftha.storage.directory.datadir import DataDirectory
from raftha.storage.log.wal import Wal
from raftha.storage.state.commands import pack_put
from raftha.storage.state.sessions import Outcome, Sessions
from raftha.storage.state.state import State
from tests.sim.disk import SimulatedDisk
from tests.sim.store import DictStore
from tests.support.asserts import Row, check, expect
from tests.support.entries import Log, group, opening
from tests.support.state_bench import Bench
from tests.support.wal import entries_after, fill, opener

# ---------------------------------------------------------------- the log on disk


def wal() -> Wal:
    """A log of three entries of term 2, with a vote in term 2."""
    made = opener(SimulatedDisk(Random(1)))()
    made.append(HardState(2, 1, 0), entries_after(made.last, 2, [10, 10, 10]))
    return made


def append(previous: int, term: int, *, skip: int = 0) -> Callable[[], None]:
    made = wal()
    position = made._position(previous)._replace(term=0)
    entries = entries_after(position, term, [10, 10])[skip:]
    return lambda: made.append(None, entries)


def append_out_of_order() -> None:
    made = wal()
    first, second = entries_after(made.last, 2, [10, 10])
    made.append(None, [first, second, second])


def append_compacted() -> None:
    made = wal()
    fill(made, 40, term=2)
    made.compact(30)
    made.append(None, entries_after(LOG_START, 2, [10]))


def forget_a_place() -> None:
    made = wal()
    made._locations.pop()
    made.append(None, entries_after(made.last, 2, [10]))


WAL: dict[str, Row] = {
    "gap": (append(3, 2, skip=1), "entries are added without a gap"),
    "compacted": (append_compacted, "what was compacted isn't replaced"),
    "term back": (append(3, 1), "terms never decrease"),
    "out of order": (append_out_of_order, "entries follow each other"),
    "hard state back": (
        lambda: wal().append(HardState(1, 0, 0), ()),
        "the term on disk never goes back",
    ),
    "place forgotten": (forget_a_place, "each entry that the log holds has a place"),
    "given up too much": (lambda: wal().compact(4), "only what the log holds is given up"),
    "pages": (
        lambda: Wal.open(SimulatedDisk(Random(1)), "wal", segment_bytes=5000, salt=lambda: 1),
        "a segment is whole pages",
    ),
    "one salt": (
        lambda: fill(
            Wal.open(SimulatedDisk(Random(1)), "wal", segment_bytes=16384, salt=lambda: 1), 40
        ),
        "each segment has a salt of its own (W5)",
    ),
}


@check(WAL)
def test_the_log_on_disk(act: Callable[[], object], says: str) -> None:
    expect(act, says)


# ---------------------------------------------------------------- the state, sessions, identity


def apply_two(*, term: int = 1, time_us: int = 1_000_000) -> None:
    log, state = Log(), State(DictStore())
    state.apply(log.noop())
    state.apply(log.noop()._replace(term=term, time_us=time_us))


def apply_again() -> None:
    entry, state = Log().noop(), State(DictStore())
    state.apply(entry)
    state.apply(entry)


def apply_miscounted() -> None:
    entry = Log().batch(opening())
    State(DictStore()).apply(entry._replace(last_sequence=1))


def apply_an_opening_with_commands() -> None:
    command = pack_put(b"key", b"value")
    State(DictStore()).apply(Log().batch(group(0, 1, [command])))


def freeze_twice() -> None:
    bench = Bench()
    bench.state.freeze()
    bench.state.freeze()


def freeze_the_past() -> None:
    bench = Bench()
    bench.one(pack_put(b"key", b"value"))
    bench.checkpoint()
    bench.state.applied = LOG_START
    bench.state.freeze()


def session(floor: int) -> tuple[Sessions, Outcome]:
    sessions = Sessions()
    sessions.open(7, 0, b"")
    sessions._sessions[7].floor = floor
    return sessions, Outcome(1, 1, 1, 1, 0)


def record_below_the_floor() -> None:
    sessions, outcome = session(3)
    sessions.record(group(7, 2, []), outcome)


def record_twice() -> None:
    sessions, outcome = session(1)
    sessions.record(group(7, 2, []), outcome)
    sessions.record(group(7, 2, []), outcome)


def record_what_was_never_dropped() -> None:
    sessions, outcome = session(1)
    sessions._size = -1000
    sessions.record(group(7, 2, []), outcome)


def open_twice() -> None:
    sessions, _ = session(1)
    sessions.open(7, 0, b"")


STATE: dict[str, Row] = {
    "applied twice": (apply_again, "entries are applied in order, each once"),
    "term back": (lambda: apply_two(term=0), "terms never decrease along the log"),
    "time back": (lambda: apply_two(time_us=0), "log time never goes back"),
    "miscounted": (apply_miscounted, "an entry's groups have as many commands as it says"),
    "opening with commands": (
        apply_an_opening_with_commands,
        "a group that opens a session has no commands",
    ),
    "frozen twice": (freeze_twice, "one checkpoint at a time"),
    "frozen in the past": (freeze_the_past, "a checkpoint never goes back"),
    "never frozen": (State(DictStore()).checkpoint_done, "a checkpoint ends after it began"),
    "below the floor": (record_below_the_floor, "what is below the floor isn't applied"),
    "recorded twice": (record_twice, "a number of a session is applied once"),
    "sizes": (record_what_was_never_dropped, "all outcomes keep to their limit"),
    "opened twice": (open_twice, "ids come from the log's positions, each used once"),
}


@check(STATE)
def test_the_state(act: Callable[[], object], says: str) -> None:
    expect(act, says)


IDENTITY: dict[str, tuple[Callable[[DataDirectory], None], str]] = {
    "healed without a loss": (
        lambda data: data.end_healing(1),
        "only a node that heals has healed",
    ),
    "lost nothing": (lambda data: data.record_loss(()), "what is lost is a part of a node"),
    "set aside unnoted": (
        lambda data: data.set_aside("log"),
        "only what is noted as lost is set aside",
    ),
    "generation back": (
        lambda data: data._save(epoch=-1),
        "a healing generation never goes back",
    ),
    "promise forgotten": (
        lambda data: data._save(promised_ms=-1),
        "what was promised isn't forgotten (L2)",
    ),
}


@pytest.mark.parametrize(("act", "says"), list(IDENTITY.values()), ids=list(IDENTITY))
def test_the_identity(tmp_path: Path, act: Callable[[DataDirectory], None], says: str) -> None:
    data = DataDirectory(tmp_path, "c", 1)
    try:
        expect(lambda: act(data), says)
    finally:
        data.close()


def test_healing_ends_in_the_next_generation(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path, "c", 1)
    data.record_loss(("log",))
    expect(lambda: data.end_healing(3), "healing ends in the next generation")
    data.end_healing(2)
    assert not data.is_healing
    data.close()
