"""A majority that is lost, or believed to be, and an operator who makes one survivor the cluster.

Theory of operation. Once in a run all members lose power, and a majority of them their directories,
too. They come back empty, under their old ids and with their old settings; one of the other
members has all that was committed. Nothing must happen then: no node may lead or found a cluster,
and an empty node that hears one with data must say that there is a cluster. After a while an
operator runs `raftha recover-quorum` on the survivor. The cluster goes on with what that one has.

In some seeds the operator is mistaken: the others live, and only this member is cut off. It begins
a history of its own, and is an *outcast* from then on: what it does is no longer held against the
others' history, and its clients hear nothing. The others must keep theirs, and stay members.

`raftha.runtime.quorum_recovery` does the work here as in reality, on the simulated disk.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from raftha.core import RaftLog
from raftha.entry import Entry, HardState
from raftha.membership import Membership
from raftha.runtime import quorum_recovery
from raftha.runtime.quorum_recovery import Plan, Survivor
from raftha.storage.directory.healing import open_or_heal
from tests.sim.invariants import Invariants
from tests.sim.member import Member
from tests.sim.network import Network
from tests.sim.planting import patched
from tests.sim.swarm import Swarm, undisturbed
from tests.sim.world import Violation, World

CHANCE = 0.06
NEW_INCARNATION = 1_000
"""What a recovery adds to a member's incarnation."""


def with_lost_majorities(swarm: Swarm, rng: Random) -> Swarm:
    """Have this in some seeds, and nothing else then; drawn from a stream of its own."""
    is_taken = swarm.rollback_every_s or swarm.alter_every_s or swarm.lapse_every_s
    if swarm.is_only_sick or swarm.is_wiping or is_taken or rng.random() >= CHANCE:
        return swarm
    return replace(
        undisturbed(swarm),
        size=rng.choice((3, 3, 5)),
        chaos_s=rng.uniform(4, 6),
        lease_ms=0,
        lease_readers=0,
        clients=4,
        is_majority_enough=True,
        do_groups_wait=False,
        loses_majority=True,
        is_majority_alive=rng.random() < 0.45,
    )


class LostMajorities:
    """The loss, and the operator."""

    def __init__(
        self,
        world: World,
        swarm: Swarm,
        members: Mapping[int, Member],
        network: Network,
        invariants: Invariants,
    ) -> None:
        self._world = world
        self._swarm = swarm
        self._members = members
        self._network = network
        self._invariants = invariants
        self._rng = world.stream("lost majorities strike")
        self._is_over = False
        self._survivor: Member | None = None
        """Set while a majority is lost, and nothing was done about it."""
        self._wiped: list[Member] = []
        if swarm.loses_majority:
            world.at(self._rng.uniform(1, 2.5), self._strike)

    def stop(self) -> None:
        """The chaos is over: the operator acts now, if a majority is lost."""
        self._is_over = True
        if self._survivor is not None:
            self._recover(self._survivor)

    def on_role(self, member: Member, role: str) -> None:
        """A member's role has changed."""
        if role == "leader" and self._survivor is not None:
            raise Violation(f"node {member.id} leads, though a majority has lost its directories")

    def _strike(self) -> None:
        whole = [m for m in self._members.values() if self._invariants.has_all_committed(m)]
        if self._is_over:
            return
        if not whole or not all(member.is_up for member in self._members.values()):
            self._world.at(0.01, self._strike)
            return
        survivor = self._rng.choice(whole)
        if self._swarm.is_majority_alive:
            self._cut_off(survivor)
        else:
            self._lose_others(survivor)

    # ---------------------------------------------------------------- a majority is lost

    def _lose_others(self, survivor: Member) -> None:
        others = [member for member in self._members.values() if member is not survivor]
        self._wiped = self._rng.sample(others, self._swarm.size // 2 + 1)
        for member in self._members.values():
            member.crash(is_power_loss=True, is_silent=self._rng.random() < 0.5)
        for member in self._wiped:
            self._world.note(member.id, "wiped", f"only {survivor.id} has all")
            member.wipe()
        self._world.counts["majority wiped"] += 1
        self._survivor = survivor
        survivor.is_wanted = self._rng.random() < 0.5
        self._world.at(self._rng.uniform(0.5, 2.0), self._recover_later)

    def _recover_later(self) -> None:
        if self._survivor is not None:
            self._check_reported(self._survivor)
            self._recover(self._survivor)

    def _check_reported(self, survivor: Member) -> None:
        for member in self._wiped:
            is_told = survivor.is_up and self._network.is_connected(member.id, survivor.id)
            if not is_told or member.founding is None:
                continue
            if "the cluster that node" not in member.founding.message():
                raise Violation(
                    f"node {member.id} is empty, hears node {survivor.id}, and says: "
                    f"{member.founding.message()}"
                )
            self._world.counts["empty node reports a cluster"] += 1

    def _recover(self, survivor: Member) -> None:
        self._survivor = None
        survivor.is_wanted = True
        survivor.crash(is_power_loss=False, is_silent=False)
        hard_state, entries = self._run_recovery(survivor)
        self._invariants.on_recovered(survivor, hard_state, entries)
        self._world.at(self._rng.uniform(0, 0.2), survivor.start)

    # ---------------------------------------------------------------- a majority is alive

    def _cut_off(self, member: Member) -> None:
        for other in self._members:
            if other != member.id:
                self._network.blocked.update(((member.id, other), (other, member.id)))
                self._network.reset(member.id, other)
        self._world.at(self._rng.uniform(0.2, 1.0), self._cast_out, member)

    def _cast_out(self, member: Member) -> None:
        if self._is_over:
            return
        member.crash(is_power_loss=False, is_silent=False)
        member.cast_out()
        self._run_recovery(member)
        self._world.counts["recovered beside a majority"] += 1
        self._world.at(self._rng.uniform(0, 0.5), self._network.blocked.clear)

    # ---------------------------------------------------------------- the operator

    def _run_recovery(self, member: Member) -> tuple[HardState, list[Entry]]:
        """Run `raftha recover-quorum` on a member that is down; the end of its log is then this."""
        member.faults.end()  # A start that was to crash may not have come.
        member.wal, state, entries = open_or_heal(member.node_files)
        wal = member.wal
        if not member.is_outcast:
            self._invariants.on_found(member)
        applied = state.membership
        membership = Membership.decode(applied) if applied else member.first
        log = RaftLog(wal.first_index, state.applied, entries, 0, membership)
        log.commit = max(log.commit, min(wal.hard_state.commit, log.last_index))
        incarnation = member.incarnation + NEW_INCARNATION
        with patched(
            [
                (quorum_recovery.logger, "disabled", True),
                (quorum_recovery, "_answers", lambda address: False),
                (quorum_recovery, "new_id", lambda: f"lineage of {member.id}"),
                (quorum_recovery, "new_incarnation", lambda: incarnation),
            ]
        ):
            identity: Any = _Identity(member)
            survivor = _SimulatedSurvivor(member.config, identity, wal, log)
            plan = survivor.plan()
            survivor.recover(plan)
        self._world.note(member.id, "quorum recovered", f"at {plan.index} in term {plan.term}")
        kept = [entry for entry in entries if entry.index < plan.index]
        return wal.hard_state, [*kept, wal.read(plan.index, 1)[0]]


class _Identity:
    """What a recovery needs of a member's `DataDirectory`."""

    path = Path()

    def __init__(self, member: Member) -> None:
        self._member = member
        self.cluster_id = member.first.cluster_id
        self.is_healing = member.node_files.is_healing

    @property
    def incarnation(self) -> int:
        return self._member.incarnation

    def renew_incarnation(self, incarnation: int) -> None:
        self._member.incarnation = incarnation


class _SimulatedSurvivor(Survivor):
    """A survivor without a file that records the recovery."""

    def _write_record(self, plan: Plan) -> Path:
        return Path()
