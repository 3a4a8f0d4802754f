"""Which versions the cluster uses: what members support, when the log raises it, which calls wait.

Theory of operation. Nodes tell each other what they support when they connect (`Supported`), and
ask again for what was lost. The leader compares: once every member of the membership is connected
and supports more than the log uses, it proposes an ADMIN entry with that
(`raftha/storage/state/versions.py`). A member that is down holds this up until it is back or
removed: it may come back with its old version. Only the first entry of a cluster doesn't wait for
members that it has yet to hear of, since nothing that they could lack has been used so far.

A cluster forms no batches before that first entry. So the replicas agree from the first command on.

A call of a command that the cluster doesn't use yet never enters a log. It is refused with
`UpgradePending`, which names the members that don't know the command. While no member is known to
lack it, the call waits a moment, since the leader may be about to raise the versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from raftha.clock import Clock
from raftha.core import Raft
from raftha.errors import InvalidRequest, RafthaError, Unavailable, UpgradePending, WireError
from raftha.events import ClusterUpgraded, ReplicaUnsupported
from raftha.node.host import Host
from raftha.node.messages import Supported
from raftha.node.operations import GroupOperation, Operation, WriteOperation
from raftha.node.trials import Trials
from raftha.node.writes import Writes
from raftha.storage.state.state import State
from raftha.storage.state.versions import (
    Abilities,
    Versions,
    common,
    encode_versions,
    pack_names,
    unpack_names,
)

HOLD_S = 1.0
"""How long a call waits for its command to become usable, and a node's last words count."""
UNFIT_MAX = 64
"""Nodes whose reasons are kept."""
ASK_TICKS = 4
"""Heartbeat intervals between questions to a member that hasn't said what it supports."""

Call = WriteOperation | GroupOperation


class Upgrades:
    """See the module's docstring. All calls come from the node's thread."""

    def __init__(
        self,
        core: Raft,
        state: State,
        host: Host,
        writes: Writes,
        deliver: Callable[[Operation, Any], None],
        clock: Clock,
    ) -> None:
        self._core = core
        self._state = state
        self._host = host
        self._writes = writes
        self._deliver = deliver
        self._now = clock.monotonic
        self._trials = Trials(state, clock.time_us)
        self._supported: dict[int, Abilities] = {}
        """What the connected members support."""
        self._heard: dict[int, Abilities] = {}
        """The same, and what those supported that are away now: for the first entry only."""
        self._unfit: dict[int, tuple[str, float]] = {}
        """Why nodes can't take part, and when they said what shows it."""
        self._waiting: list[tuple[float, Call]] = []
        self._proposed: tuple[int, Versions] | None = None
        self._ticks = 0

    # ---------------------------------------------------------------- members

    def on_connected(self, peer: int) -> None:
        """Tell the peer what this node supports."""
        self._send(peer, asks=True)

    def on_disconnected(self, peer: int) -> None:
        """The peer may come back with another version."""
        self._supported.pop(peer, None)

    def on_message(self, message: Supported) -> None:
        """A peer says what it supports."""
        peer = message.sender
        try:
            commands = unpack_names(message.commands)
        except ValueError as error:
            raise WireError(f"what node {peer} supports can't be read: {error}") from error
        abilities = Abilities(
            message.release,
            message.protocol_oldest,
            message.protocol,
            message.machine_oldest,
            message.machine,
            commands,
        )
        self._supported[peer] = abilities
        if self._state.versions is None:
            self._heard[peer] = abilities
        if message.asks:
            self._send(peer, asks=False)
        used = self._state.versions
        reason = abilities.refusal(used) if used is not None else ""
        if len(self._unfit) > UNFIT_MAX:
            self._unfit.clear()
        if reason:
            self._unfit[peer] = reason, self._now()
            self._host.emit(ReplicaUnsupported(reporter=self._core.id, node_id=peer, reason=reason))
        else:
            self._unfit.pop(peer, None)
        self.propose_if_due()

    def why_unfit(self, node_id: int) -> str:
        """Why a node can't join, by what it supports, or did a moment ago; "" if it can.

        A node that can't take part stops as soon as it sees the log, and is no longer connected
        when its operator's request is repeated.
        """
        reason, since = self._unfit.get(node_id, ("", 0.0))
        return reason if node_id in self._supported or self._now() - since < HOLD_S else ""

    def release(self, node_id: int) -> tuple[str, int]:
        """Return a connected node's version of raftha and of its machine; ("", 0) if unknown."""
        known = self._state.abilities if node_id == self._core.id else None
        known = known or self._supported.get(node_id)
        return (known.release, known.machine) if known is not None else ("", 0)

    def waits_for(self) -> tuple[int, ...]:
        """Return the members that keep the cluster from using all that this node supports."""
        used, own = self._state.versions, self._state.abilities
        if used is None or common([own]) == used:
            return ()
        others = self._others()
        return tuple(
            member
            for member in others
            if member not in self._supported or not _covers(self._supported[member], own)
        )

    def _others(self) -> list[int]:
        return sorted(self._core.membership.members.keys() - {self._core.id})

    def _send(self, peer: int, *, asks: bool) -> None:
        own = self._state.abilities
        self._host.send(
            Supported(
                to=peer,
                sender=self._core.id,
                asks=asks,
                release=own.release,
                protocol_oldest=own.protocol_oldest,
                protocol=own.protocol,
                machine_oldest=own.machine_oldest,
                machine=own.machine,
                commands=pack_names(own.commands),
            )
        )

    def on_tick(self, now: float) -> None:
        """A heartbeat interval has passed."""
        self._ticks += 1
        if self._ticks % ASK_TICKS == 0:
            for member in self._others():
                if member not in self._supported and self._host.is_connected(member):
                    self._send(member, asks=True)
        self.propose_if_due()
        if self._waiting:
            self._expire(now)

    # ---------------------------------------------------------------- the cluster's versions

    def propose_if_due(self) -> None:
        """As leader, raise the cluster's versions to what all members support."""
        core, used = self._core, self._state.versions
        if not core.is_leader or core.log.term(self._state.applied.index) != core.term:
            return  # The state doesn't know yet what earlier leaders have recorded.
        raised = self._supported_by_all()
        if raised is None or raised == used or self._proposed == (core.term, raised):
            return
        if core.propose_admin(encode_versions(raised)) is not None:
            self._proposed = core.term, raised
            self._host.wake()

    def _supported_by_all(self) -> Versions | None:
        """The versions to propose; None if a member supports no more than is used."""
        used, own = self._state.versions, self._state.abilities
        others = self._others()
        if used is None:
            heard = [self._heard[member] for member in others if member in self._heard]
            return common([own, *heard]) or common([own])
        known = [self._supported[member] for member in others if member in self._supported]
        if len(known) < len(others):
            return None
        versions = common([own, *known])
        return None if versions is None else used.raised(versions)

    def on_applied(self, *, is_new: bool) -> None:
        """The state has applied an entry that raises the versions; `is_new`: not before a start."""
        used = self._state.versions
        assert used is not None, "the entry has versions"
        if is_new:
            self._host.emit(
                ClusterUpgraded(
                    reporter=self._core.id,
                    protocol=used.protocol,
                    machine_version=used.machine,
                    commands=len(used.commands),
                )
            )
        waiting, self._waiting = self._waiting, []
        self.admit(call for _, call in waiting if call.waiter is not None)
        self._host.wake()

    # ---------------------------------------------------------------- calls

    def admit(self, calls: Iterable[Call]) -> None:
        """Queue calls whose commands the cluster uses; the others wait, or are refused."""
        used = self._state.versions
        for call in calls:
            if not call.names or (used is not None and used.commands.issuperset(call.names)):
                unfit = self._trials.refusal(call) if call.names else None
                if unfit is None:
                    self._writes.add_checked(call)
                else:
                    self._deliver(call, unfit)
                continue
            refusal = self._refusal(call.names)
            if refusal is not None:
                self._deliver(call, refusal)
            else:
                self._waiting.append((self._now() + HOLD_S, call))

    def _refusal(self, names: tuple[str, ...]) -> RafthaError | None:
        """Why these commands can't be called soon; None if they may be."""
        unknown = [name for name in names if name not in self._state.abilities.commands]
        if unknown:
            return InvalidRequest(f"unknown command {unknown[0]!r:.100}")
        if self._state.versions is None:
            return None
        lacking = [
            member
            for member in self._others()
            if member in self._supported and not self._supported[member].commands.issuperset(names)
        ]
        return _pending(names, lacking, "not all members know") if lacking else None

    def _expire(self, now: float) -> None:
        """Refuse the calls that have waited long enough."""
        is_founded = self._state.versions is not None
        waiting, self._waiting = self._waiting, []
        for until, call in waiting:
            if call.waiter is None:
                continue
            if (min(until, call.deadline) if is_founded else call.deadline) <= now:
                self._deliver(call, self._why_late(call.names))
            else:
                self._waiting.append((until, call))

    def _why_late(self, names: tuple[str, ...]) -> RafthaError:
        if self._state.versions is None:
            return Unavailable("no leader was reached before the deadline")
        silent = [member for member in self._others() if member not in self._supported]
        return self._refusal(names) or _pending(
            names, silent, "not all members have said that they know"
        )

    def abort(self, error: Exception) -> None:
        """The node ends: fail the calls that wait."""
        waiting, self._waiting = self._waiting, []
        for _, call in waiting:
            if call.waiter is not None:
                self._deliver(call, error)


def _covers(member: Abilities, own: Abilities) -> bool:
    return (
        member.protocol >= own.protocol
        and member.machine >= own.machine
        and member.commands >= own.commands
    )


def _pending(names: tuple[str, ...], nodes: list[int], what: str) -> UpgradePending:
    quoted = ", ".join(repr(name) for name in names)
    if not nodes:
        return UpgradePending(f"the cluster does not use {quoted} yet; try again")
    listed = ", ".join(str(node) for node in nodes)
    return UpgradePending(
        f"{what} {quoted}: node {listed}",
        tuple(nodes),
        hint="upgrade all members; one that is down must be started or removed",
    )
