"""When the leader raises the cluster's versions, and which calls wait or are refused."""

from __future__ import annotations

from typing import Any, cast

import pytest

from raftha import version
from raftha.clock import Clock
from raftha.entry import EntryKind
from raftha.errors import InvalidRequest, Unavailable, UpgradePending, WireError
from raftha.events import ClusterUpgraded, HaEvent, ReplicaUnsupported
from raftha.node.host import Host
from raftha.node.messages import PeerMessage, Supported
from raftha.node.operations import CallOperation, Operation
from raftha.node.upgrades import ASK_TICKS, HOLD_S, Upgrades
from raftha.node.writes import Writes
from raftha.storage.state.commands import pack_call
from raftha.storage.state.machine import StateMachine, Transaction, command
from raftha.storage.state.state import State
from raftha.storage.state.versions import Versions, abilities_of, pack_names
from tests.sim.store import DictStore
from tests.support.core import acknowledge, become_leader, core, follow, settle

PROTOCOL = version.PROTOCOL_VERSION


class Old(StateMachine):
    @command
    def add(self, txn: Transaction) -> None: ...


class New(Old):
    version = 2

    @command
    def double(self, txn: Transaction) -> None: ...


class Scene:
    """`Upgrades` of node 1 of three, its core and its state; host and `Writes` at once."""

    def __init__(self, machine: StateMachine | None) -> None:
        self.core = core()
        self.state = State(DictStore(), machine)
        self.now = 100.0
        self.sent: list[Supported] = []
        self.events: list[HaEvent] = []
        self.connected = {2, 3}
        self.queued: list[Any] = []
        self.results: dict[str, Any] = {}
        self.upgrades = Upgrades(
            self.core,
            self.state,
            cast(Host, self),
            cast(Writes, self),
            self._deliver,
            cast(Clock, self),
        )

    def send(self, message: PeerMessage) -> None:
        assert isinstance(message, Supported)
        self.sent.append(message)

    def emit(self, event: HaEvent) -> None:
        self.events.append(event)

    def monotonic(self) -> float:
        return self.now

    def time_us(self) -> int:
        return 1_000

    def wake(self) -> None: ...

    def is_connected(self, peer: int) -> bool:
        return peer in self.connected

    def add_checked(self, operation: Operation) -> None:
        self.queued.append(operation.waiter)

    def _deliver(self, operation: Operation, result: Any) -> None:
        self.results[operation.waiter] = result
        operation.waiter = None

    def hear(self, peer: int, machine: StateMachine | None, *, asks: bool = False) -> None:
        """A peer says that it runs `machine`."""
        release, oldest, newest, machine_oldest, machine_newest, names = abilities_of(machine)
        self.upgrades.on_message(
            Supported(
                1,
                peer,
                asks,
                release,
                oldest,
                newest,
                machine_oldest,
                machine_newest,
                pack_names(names),
            )
        )

    def commit(self) -> None:
        """All that is in the log is committed and applied."""
        settle(self.core)
        acknowledge(self.core, 2)
        for entry in self.core.log.between(self.state.applied.index, self.core.log.commit):
            self.state.apply(entry)
            if entry.kind == EntryKind.ADMIN:
                self.upgrades.on_applied(is_new=True)

    def lead(self) -> None:
        become_leader(self.core)
        self.commit()
        self.upgrades.propose_if_due()
        self.commit()

    def call(self, name: str, waiter: str) -> None:
        self.upgrades.admit([CallOperation(waiter, self.now + 10, pack_call(name, ()), name)])

    def tick(self, times: int = 1) -> None:
        for _ in range(times):
            self.upgrades.on_tick(self.now)


def leading(machine: StateMachine) -> Scene:
    scene = Scene(machine)
    scene.hear(2, Old())
    scene.hear(3, Old())
    scene.lead()
    return scene


def test_the_first_leader_records_what_it_and_those_it_hears_from_support() -> None:
    scene = Scene(New())
    scene.hear(2, Old())
    scene.lead()
    assert scene.state.versions == Versions(PROTOCOL, 1, frozenset({"add"}))
    assert [type(event) for event in scene.events] == [ClusterUpgraded]


def test_nothing_is_proposed_before_the_state_has_an_entry_of_this_term() -> None:
    scene = Scene(New())
    become_leader(scene.core)
    scene.upgrades.propose_if_due()
    assert scene.core.log.last_index == 1
    scene.commit()
    scene.upgrades.propose_if_due()
    assert scene.core.log.last_index == 2
    scene.upgrades.propose_if_due()
    assert scene.core.log.last_index == 2, "once"


def test_the_leader_raises_the_versions_once_every_member_supports_more() -> None:
    scene = leading(New())
    assert scene.upgrades.waits_for() == (2, 3)
    scene.hear(2, New())
    assert scene.upgrades.waits_for() == (3,)
    scene.commit()
    assert scene.state.versions == Versions(PROTOCOL, 1, frozenset({"add"}))
    scene.hear(3, New())
    scene.commit()
    assert scene.state.versions == Versions(PROTOCOL, 2, frozenset({"add", "double"}))
    assert scene.upgrades.waits_for() == ()
    event = scene.events[-1]
    assert isinstance(event, ClusterUpgraded)
    assert (event.protocol, event.machine_version, event.commands) == (PROTOCOL, 2, 2)


def test_a_member_that_is_away_holds_an_upgrade_up() -> None:
    scene = leading(New())
    scene.hear(2, New())
    scene.upgrades.on_disconnected(2)
    scene.hear(3, New())
    scene.commit()
    assert scene.state.versions == Versions(PROTOCOL, 1, frozenset({"add"}))
    assert scene.upgrades.waits_for() == (2,)


def test_a_follower_proposes_nothing() -> None:
    scene = Scene(New())
    follow(scene.core)
    for peer in (2, 3):
        scene.hear(peer, New())
    scene.tick(ASK_TICKS)
    assert scene.core.log.last_index == 0


def test_a_call_that_a_member_does_not_know_is_refused_by_name() -> None:
    scene = leading(New())
    scene.call("add", "known")
    scene.call("double", "new")
    scene.call("nothing", "unknown")
    assert scene.queued == ["known"]
    assert isinstance(scene.results["new"], UpgradePending)
    assert scene.results["new"].nodes == (2, 3)
    assert isinstance(scene.results["unknown"], InvalidRequest)


def test_a_call_waits_while_the_versions_are_about_to_be_raised() -> None:
    scene = leading(New())
    scene.hear(2, New())
    scene.hear(3, New())
    scene.call("double", "early")
    assert not scene.results and not scene.queued
    scene.commit()
    assert scene.queued == ["early"]


def test_a_call_names_the_members_that_say_nothing_after_a_moment() -> None:
    scene = leading(New())
    scene.hear(2, New())
    scene.upgrades.on_disconnected(3)
    scene.call("double", "a")
    scene.tick()
    assert not scene.results
    scene.now += HOLD_S
    scene.tick()
    assert isinstance(scene.results["a"], UpgradePending)
    assert scene.results["a"].nodes == (3,)


def test_before_the_first_entry_a_call_waits_until_its_deadline() -> None:
    scene = Scene(Old())
    scene.call("add", "a")
    scene.call("add", "b")
    scene.now += 2 * HOLD_S
    scene.tick()
    assert not scene.results
    scene.now += 10
    scene.tick()
    assert isinstance(scene.results["a"], Unavailable)


def test_calls_that_wait_end_with_the_node() -> None:
    scene = Scene(Old())
    scene.call("add", "a")
    scene.upgrades.abort(Unavailable("it ends"))
    assert isinstance(scene.results["a"], Unavailable)


def test_what_was_lost_is_asked_for_again() -> None:
    scene = Scene(Old())
    scene.upgrades.on_connected(2)
    scene.hear(2, Old(), asks=True)
    assert [(message.to, message.asks) for message in scene.sent] == [(2, True), (2, False)]
    scene.sent.clear()
    scene.tick(ASK_TICKS)
    assert [(message.to, message.asks) for message in scene.sent] == [(3, True)]


def test_a_node_that_cannot_take_part_is_reported_and_cannot_join() -> None:
    scene = leading(Old())
    scene.hear(3, None)
    assert isinstance(scene.events[-1], ReplicaUnsupported)
    assert "state machine 1, and the node supports 0" in scene.upgrades.why_unfit(3)
    assert not scene.upgrades.why_unfit(2)
    scene.upgrades.on_disconnected(3)
    assert scene.upgrades.why_unfit(3), "it has stopped for that reason"
    scene.now += HOLD_S
    assert not scene.upgrades.why_unfit(3), "it may come back with another build"
    scene.hear(3, Old())
    assert not scene.upgrades.why_unfit(3)


def test_names_that_cannot_be_read_close_the_connection() -> None:
    scene = Scene(Old())
    with pytest.raises(WireError, match="node 2 supports"):
        scene.upgrades.on_message(Supported(1, 2, False, "0.1.0", 6, 6, 0, 1, b"\xc1"))
