"""Where this node dials the other members: at the log's addresses, or at recorded new ones.

Theory of operation. The log's address of a member is what the others dial. A node's own settings
say where it listens. The two may differ, as behind a port mapping, or while a member moves; the
node says so in its log and runs.

If all members move at once, `raftha move` records the new addresses in each stopped node's data
directory (`raftha/storage/directory/moves.py`). Until the node has applied a membership with
another address than those of before, it dials the recorded one. A leader with such a record appends
the new addresses to the log, one member at a time. None of this changes a vote or a quorum: a
connection still has to show that it leads to the right node of the right cluster.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from raftha.config import HaConfig, parse_address
from raftha.core import Raft
from raftha.errors import InvalidRequest, MembershipChangePending, Unavailable
from raftha.membership import Membership
from raftha.runtime.quorum_recovery import open_stopped
from raftha.storage.directory import moves
from raftha.storage.directory.moves import Move

log = logging.getLogger(__name__)


class Moves:
    """The recorded moves of one life of a node; for the node's thread."""

    def __init__(self, config: HaConfig, core: Raft) -> None:
        """Read the record in the data directory, which is locked."""
        self._config = config
        self._core = core
        self._recorded = moves.load(Path(config.data_dir))

    def report(self) -> None:
        """Log how the settings differ from what the log, or the record, says."""
        found = differences(self._config, self._placed(self._core.membership))
        if found:
            log.warning(
                "node=%d the cluster's addresses and regions count, and the settings differ: %s; "
                "`raftha member move` changes a member, `raftha move` all addresses at once",
                self._config.node_id,
                "; ".join(found),
            )

    def on_tick(self) -> None:
        """A tick has passed: as leader, append the next recorded address to the log."""
        if not self._recorded or not self._core.is_leader:
            return
        membership = self._core.membership
        moved = _next_moved(membership, self._valid(membership))
        if moved is not None:
            with suppress(Unavailable, MembershipChangePending):
                self._core.change_membership(moved)

    def on_membership(self, applied: Membership) -> None:
        """The state has applied this membership: forget the moves that it makes void."""
        if self._recorded and applied.cluster_id:  # Else it comes from the settings.
            self._recorded = {
                i: move for i, move in self._recorded.items() if not self._is_void(i, move, applied)
            }
            if not self._recorded:
                moves.forget(Path(self._config.data_dir))

    def peers(self, membership: Membership) -> dict[str, Any]:
        """What a transport has to know of the members: the arguments of its `set_members`."""
        members = self._placed(membership).members
        return {
            "addresses": {
                i: member.address for i, member in members.items() if i != self._config.node_id
            },
            "removed": membership.removed,
            "recorded": {i: member.incarnation for i, member in members.items()},
            "lineage": membership.lineage,
        }

    def _is_void(self, node_id: int, move: Move, applied: Membership) -> bool:
        """Whether the log has gone on from what it was when the move was recorded."""
        there, latest = applied.members.get(node_id), self._core.membership.members.get(node_id)
        if there is None or there.address not in move.before:
            return True
        # A start applies the log's past again, in which the member may have been there before.
        return latest is not None and there.address == latest.address == move.address

    def _valid(self, membership: Membership) -> dict[int, Move]:
        """The moves that change this membership."""
        members = membership.members
        return {
            i: move
            for i, move in self._recorded.items()
            if i in members and members[i].address in move.before - {move.address}
        }

    def _placed(self, membership: Membership) -> Membership:
        return _with_addresses(
            membership, {i: move.address for i, move in self._valid(membership).items()}
        )


def _with_addresses(membership: Membership, addresses: Mapping[int, str]) -> Membership:
    """With other addresses, whether or not two are the same on the way."""
    moved = {i: membership.members[i]._replace(address=a) for i, a in addresses.items()}
    return replace(membership, members={**membership.members, **moved})


def _next_moved(membership: Membership, pending: Mapping[int, Move]) -> Membership | None:
    """The next membership on the way to these addresses; None if all are there."""
    for node_id, move in sorted(pending.items()):
        with suppress(InvalidRequest):
            return membership.with_address(node_id, move.address)
    for node_id, move in sorted(pending.items()):
        # All of them move to addresses of others that move: they exchange addresses.
        return _with_addresses(membership, {node_id: move.address})
    return None


def differences(config: HaConfig, membership: Membership) -> list[str]:
    """How a node's settings differ from the cluster's membership, in words."""
    found = []
    for node_id, member in sorted(membership.members.items()):
        is_own = node_id == config.node_id
        here = config.own_address if is_own else config.members.get(node_id)
        if is_own and here != member.address:
            found.append(f"this node listens on {here}, and the others dial {member.address}")
        elif here not in (None, member.address):
            found.append(f"node {node_id} is at {member.address}, not at {here}")
        region = config.regions_by_member.get(node_id)
        if region not in (None, member.region):
            found.append(f"node {node_id} is in region {member.region!r}, not in {region!r}")
    return found


# ------------------------------------------------------------------------------- a stopped node


@contextmanager
def plan_moves(config: HaConfig, given: Mapping[int, str]) -> Iterator[dict[int, Move]]:
    """Find, with a stopped node's directory locked, which members move by its settings.

    The addresses are those in the settings, and `given`, which comes first. InvalidRequest if no
    address changes, or if two members would have the same.
    """
    addresses = {**config.members, config.node_id: config.own_address, **given}
    with open_stopped(config) as stopped:
        # The node applies all of them again when it starts.
        known = [m for m in stopped.log.memberships if m.cluster_id]
        members = stopped.log.membership.members
        unknown = sorted(given.keys() - members.keys())
        if unknown:
            raise InvalidRequest(f"node {unknown[0]} is not a member")
        planned = {}
        for node_id in sorted(members.keys() & addresses.keys()):
            parse_address(f"the address of node {node_id}", addresses[node_id])
            if addresses[node_id] != members[node_id].address:
                before = {m.members[node_id].address for m in known if node_id in m.members}
                planned[node_id] = Move(frozenset(before), addresses[node_id])
        after = [planned[i].address if i in planned else m.address for i, m in members.items()]
        if len(set(after)) < len(after):
            raise InvalidRequest("two members would have the same address")
        yield planned


def record_moves(config: HaConfig, planned: Mapping[int, Move]) -> None:
    """Have this node dial these members at their new addresses from its next start on."""
    moves.save(Path(config.data_dir), planned)
    log.warning("node=%d records moves of nodes %s", config.node_id, ",".join(map(str, planned)))
