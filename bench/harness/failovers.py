"""Leaders fail while this process writes, and how long it can't write.

Theory of operation. Three nodes with the default configuration, but for `lease_ms`: 2 and 3 in
processes of their own, and 1 in this one, with the callers. Before each round 2 or 3 becomes the
leader, in turn. Then, under load (8 callers, each with one write under way), it fails in one of
HOWS. A silent failure needs a network namespace for each node (`namespaces`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import raftha
from bench.harness import namespaces
from bench.harness.embedded import read_config
from raftha.events import FailoverCompleted
from raftha.server.machine import RedisMachine
from raftha.testing import LocalCluster

OWN, OTHERS = 1, (2, 3)
CALLERS = 8
WARM_UP_S = 0.5
ROUND_TIMEOUT_S = 30.0
HOWS = ("kill", "stop", "silent", "planned")


@dataclass(frozen=True, slots=True)
class Round:
    """One failover, in milliseconds."""

    total_ms: float
    detect_ms: float
    elect_ms: float
    first_commit_ms: float


class Load:
    """Callers that write as fast as they can, and the times of their writes."""

    def __init__(self, ha: raftha.HaManager) -> None:
        self._ha = ha
        self._stops = threading.Event()
        self._lock = threading.Lock()
        self._done: list[tuple[float, float]] = []
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(CALLERS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stops.set()
        for thread in self._threads:
            thread.join()

    def _run(self, caller: int) -> None:
        number = 0
        while not self._stops.is_set():
            number += 1
            began = time.perf_counter()
            with suppress(raftha.RafthaError):
                self._ha.put(b"key-%d-%d" % (caller, number % 1000), b"x" * 256)
                with self._lock:
                    self._done.append((began, time.perf_counter()))

    def forget(self) -> None:
        """Begin a new round."""
        with self._lock:
            self._done.clear()

    def first_after(self, fault: float) -> float | None:
        """When the first write that began after the fault was acknowledged."""
        with self._lock:
            return min((done for began, done in self._done if began > fault), default=None)

    def longest_gap(self) -> float:
        """The longest time between two acknowledgements."""
        with self._lock:
            times = sorted(done for _, done in self._done)
        return max(b - a for a, b in pairwise(times))


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until `condition` holds; an error if it doesn't within the time of a round."""
    deadline = time.perf_counter() + ROUND_TIMEOUT_S
    pause = threading.Event()
    while not condition():
        if time.perf_counter() > deadline:
            raise RuntimeError(f"not within {ROUND_TIMEOUT_S} s: {what}")
        pause.wait(0.002)


class Bench:
    """The node in this process, its reports, and the faults of the others."""

    def __init__(
        self,
        ha: raftha.HaManager,
        take_away: Callable[[int], None] | None,
        bring_back: Callable[[int], None] | None,
    ) -> None:
        """Without `take_away` leadership is handed over."""
        self._take_away = take_away
        self._bring_back = bring_back
        self.ha = ha
        self.stream = ha.events()

    def make_leader(self, node_id: int) -> None:
        """Make a node the leader, with all members connected and caught up."""

        def is_ready() -> bool:
            status = self.ha.get_status()
            if not all(replica.connected for replica in status.replicas):
                return False
            with suppress(raftha.RafthaError):
                self.ha.failover_to(node_id, timeout=2)
            return self.ha.get_status().leader_id == node_id

        wait_for(is_ready, f"node {node_id} leads")
        threading.Event().wait(WARM_UP_S)
        while self.stream.next(timeout=0) is not None:
            pass

    def phases(self) -> FailoverCompleted:
        """The reported phases of the failover under way."""
        deadline = time.perf_counter() + ROUND_TIMEOUT_S
        while (left := deadline - time.perf_counter()) > 0:
            event = self.stream.next(timeout=left)
            if isinstance(event, FailoverCompleted):
                return event
        raise RuntimeError("no failover was reported")

    def run(self, rounds: int) -> list[Round]:
        """Run so many failovers."""
        results = []
        with Load(self.ha) as load:
            for number in range(rounds):
                leader = OTHERS[number % 2]
                self.make_leader(leader)
                load.forget()
                threading.Event().wait(0.1)
                run = self._planned if self._take_away is None else self._unplanned
                results.append(run(leader, load))
        return results

    def _planned(self, leader: int, load: Load) -> Round:
        self.ha.failover_to(sum(OTHERS) - leader)
        event = self.phases()
        threading.Event().wait(0.2)
        return _round(load.longest_gap(), event)

    def _unplanned(self, leader: int, load: Load) -> Round:
        assert self._take_away is not None
        assert self._bring_back is not None
        fault = time.perf_counter()
        self._take_away(leader)
        # The failing leader may have acknowledged a write that began during the fault.
        is_away = time.perf_counter()
        wait_for(lambda: load.first_after(is_away) is not None, "a write is acknowledged")
        event = self.phases()
        self._bring_back(leader)
        done = load.first_after(is_away)
        assert done is not None
        return _round(done - fault, event)


def _round(total_s: float, event: FailoverCompleted) -> Round:
    return Round(1000 * total_s, event.detect_ms, event.elect_ms, event.first_commit_ms)


def measure(how: str, rounds: int, lease_ms: int = 0) -> list[Round]:
    """Start a cluster and let its leaders fail."""
    if how == "silent":
        with (
            namespaces.network(lease_ms) as network,
            raftha.HaManager(network.config(), state_machine=RedisMachine()) as ha,
        ):
            ha.put(b"warm", b"up", timeout=60)
            return Bench(ha, network.cut_off, network.reconnect).run(rounds)
    with LocalCluster(nodes=3, settings={"lease_ms": lease_ms}) as cluster:
        ways = {
            "kill": (cluster.kill, cluster.start_node),
            "stop": (cluster.pause, cluster.resume),
            "planned": (None, None),
        }
        cluster.terminate(OWN)
        with raftha.HaManager(
            read_config(cluster.config_of(OWN)), state_machine=RedisMachine()
        ) as ha:
            ha.put(b"warm", b"up", timeout=60)
            return Bench(ha, *ways[how]).run(rounds)
