"""Reads by lease from the calling thread: when they count; they never go back in time."""

from __future__ import annotations

import sys
import threading
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from raftha.core import Raft
from raftha.errors import StorageFailed
from raftha.node.lease_reads import MISSED, LeaseReads
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.commands import pack_delete, pack_put
from raftha.storage.state.state import State
from tests.sim.store import DictStore
from tests.support.core import acknowledge, become_leader, core
from tests.support.state_bench import Bench

FAR_NS = 1 << 50


class Interrupted(State):
    """A state in which something else happens while a value is read."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        super().__init__(DictStore())
        self._meanwhile = meanwhile

    def get(self, key: bytes) -> bytes | None:
        value = super().get(key)
        self._meanwhile()
        return value


def leader() -> Raft:
    """A core that leads, has applied everything that is committed, and holds a lease."""
    raft = core(lease_ms=100, clock_ns=lambda: FAR_NS)
    raft._election.promise._until_ns = 0
    become_leader(raft)
    acknowledge(raft, 2)
    raft.leases.renew([2 * FAR_NS] * 3, 2)
    return raft


def lease_reads(raft: Raft, meanwhile: Callable[[], None] = lambda: None) -> LeaseReads:
    state = Interrupted(meanwhile)
    state.applied = state.applied._replace(index=raft.log.commit)
    return LeaseReads(raft, state, raft.leases.clock_ns, defaultdict(int))


def test_a_lease_that_holds_answers() -> None:
    assert lease_reads(leader()).get(b"key") is None


def test_a_read_by_lease_misses_while_committed_entries_are_not_applied() -> None:
    """A follower may have answered its callers already."""
    raft = leader()
    reads = lease_reads(raft)
    raft.log.commit += 1
    assert reads.get(b"key") is MISSED


def test_without_a_lease_reads_are_missed() -> None:
    raft = leader()
    raft.leases.withdraw()
    assert lease_reads(raft).get(b"key") is MISSED


def test_a_lease_that_ran_out_while_the_value_was_read_is_missed() -> None:
    raft = leader()
    assert lease_reads(raft, lambda: raft.leases.renew([0, 0, 0], 2)).get(b"key") is MISSED


def test_a_lease_of_another_time_does_not_serve_this_read() -> None:
    """Another node may have led between the two."""
    raft = leader()

    def lose_and_win() -> None:
        raft.leases.withdraw()
        raft.leases.renew([2 * FAR_NS] * 3, 2)

    assert lease_reads(raft, lose_and_win).get(b"key") is MISSED


def test_a_store_that_is_being_closed_is_missed() -> None:
    def fail() -> None:
        raise StorageFailed("closed")

    assert lease_reads(leader(), fail).get(b"key") is MISSED


def test_a_closed_lmdb_store_says_so(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "state")
    store.close()
    with pytest.raises(StorageFailed, match="can't read"):
        store.get(b"key")


@pytest.mark.slow
def test_other_threads_see_a_key_go_forward_only_through_all_layers(tmp_path: Path) -> None:
    """Entries, freezes, checkpoints and growing maps go on while three threads read."""
    store = CheckpointStore(tmp_path / "state", map_bytes_min=1 << 20)
    bench = Bench(store)
    applied = [0]
    is_over = threading.Event()
    wrong: list[str] = []
    checked = [0, 0, 0]

    def read(reader: int) -> None:
        while not is_over.is_set():
            floor = applied[0]
            value = bench.state.get(b"key")
            version = int(value or b"0")
            if not floor <= version <= applied[0] + 1:
                wrong.append(f"{version} though {floor} was applied before")
            gone = bench.state.get(b"gone")
            if floor and gone is not None:
                wrong.append(f"{gone!r} is back")
            checked[reader] += 1

    interval = sys.getswitchinterval()
    threads = [threading.Thread(target=read, args=(i,)) for i in range(3)]
    bench.do(pack_put(b"gone", b"here"))
    bench.checkpoint()
    bench.do(pack_delete(b"gone"))
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for version in range(1, 301):
            bench.do(pack_put(b"key", b"%d" % version), pack_put(b"%d" % version, bytes(16_384)))
            applied[0] = version
            if version % 3 == 0:
                bench.checkpoint()
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
        sys.setswitchinterval(interval)
    assert not wrong
    assert min(checked) > 0
    assert store.map_bytes > 1 << 20, "the map has grown meanwhile"
    store.close()
