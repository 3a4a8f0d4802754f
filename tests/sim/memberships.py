"""What must hold of memberships, whichever node's log they are in.

Theory of operation. A node goes by the latest membership in its log, committed or not. Which one
that is, is read here from the log's entries alone: from those in memory, or, if there is none, from
what is known to be committed. So the core's own idea of it can be held against it.

    in force              a node goes by the latest membership in its log; it is as before if the
                          entry is cut off
    one at a time         no log has two memberships that aren't committed, and no leader appends
                          one before it has committed an entry of its own term
    one voter             a membership has at most one voter more or less than the one before it
    used up               a removed id never comes back standbys              a later member votes,
    or is about to, only if an operator wished so only voters lead      elected by a majority of the
    voters of the membership in the leader's log
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from raftha.core import Raft, RaftLog
from raftha.entry import ENTRY_HEADER_BYTES, Entry, EntryKind
from raftha.membership import Membership
from tests.sim.world import Violation


def voters(membership: Membership) -> set[int]:
    """Read from the members themselves: `Membership.voters` is under test."""
    return {node_id for node_id, member in membership.members.items() if member.is_voter}


@lru_cache(256)
def _decode(entry: bytes) -> Membership:
    return Membership.decode(entry[ENTRY_HEADER_BYTES:])


class Memberships:
    """The committed memberships of one cluster, and whether nodes follow them."""

    def __init__(self, first: Membership, committed: Sequence[Entry]) -> None:
        self._known = [(0, first)]
        self.on_change: Callable[[], None] = lambda: None
        """Called when another membership is committed."""
        self.wanted = set(first.members)
        """The ids that should vote, by the operators' wishes."""
        self.standbys: set[int] = set()
        """The ids that were standbys at any time."""
        self.forks: set[bytes] = set()
        """Hashes of entries by which an operator has made a survivor the whole cluster."""
        self._committed = committed
        self._seen = 0

    @property
    def latest(self) -> Membership:
        """The last one that is committed."""
        return self._known[-1][1]

    def commit(self, entry: Entry) -> None:
        """An entry is committed, for the first time anywhere."""
        self._seen = entry.index
        if entry.kind != EntryKind.MEMBERSHIP:
            return
        before, after = self.latest, Membership.decode(bytes(entry.payload))
        if len(voters(before) ^ voters(after)) > 1 and entry.hash not in self.forks:
            raise Violation(
                f"voters went from {sorted(voters(before))} to {sorted(voters(after))} in one step"
            )
        if before.removed - after.removed or after.removed & after.members.keys():
            raise Violation(f"a removed node came back: {sorted(before.removed)} were removed")
        if before.members.keys() - after.members.keys() - after.removed:
            raise Violation("a node has gone, and may come back: it isn't among the removed")
        self._check_standbys(after)
        self._known.append((entry.index, after))
        self.on_change()

    def _check_standbys(self, membership: Membership) -> None:
        for node_id, member in membership.members.items():
            if member.is_standby:
                self.standbys.add(node_id)
            elif node_id not in self.wanted:
                raise Violation(
                    f"node {node_id} is more than a standby without an operator's wish: {member}"
                )
            if member.is_voter and member.is_standby:
                raise Violation(f"node {node_id} votes, and is a standby: {member}")

    def has_been(self, node_id: int, *, adds: bool, is_standby: bool) -> bool:
        """Whether a node ever was what an operator wanted: a voter or a standby, or gone."""
        if not adds:
            return node_id in self.latest.removed
        ever = [known.members[node_id] for _, known in self._known if node_id in known.members]
        return any(member.is_standby if is_standby else member.is_voter for member in ever)

    def in_force(self, log: RaftLog) -> Membership:
        """The latest in this log. Up to its commit index a log was found to be the known one."""
        for entry in reversed(self._open(log)):
            if entry.kind == EntryKind.MEMBERSHIP:
                return _decode(entry.data)
        return next(known for index, known in reversed(self._known) if index <= log.commit)

    def _open(self, log: RaftLog) -> list[Entry]:
        """What isn't committed as far as this log knows, or not taken in here yet."""
        return log.window[max(min(log.commit, self._seen) - log.anchor.index, 0) :]

    def check(self, core: Raft) -> None:
        """A node's log has changed, or what the node is."""
        open_ones = [
            entry
            for entry in self._open(core.log)
            if entry.kind == EntryKind.MEMBERSHIP and not self._is_committed(entry)
        ]
        if len(open_ones) > 1:
            places = ", ".join(str(entry.index) for entry in open_ones)
            raise Violation(f"node {core.id} has changes of membership under way at {places}")
        for entry in open_ones:
            is_own = core.is_leader and entry.term == core.term
            if is_own and self._committed[-1].term < core.term:
                raise Violation(
                    f"node {core.id} changes members in term {core.term} before an entry of that "
                    f"term is committed"
                )
        if core.log.membership != self.in_force(core.log):
            raise Violation(f"node {core.id} goes by a membership that isn't the latest in its log")

    def _is_committed(self, entry: Entry) -> bool:
        index = entry.index
        return index <= len(self._committed) and self._committed[index - 1].hash == entry.hash

    def check_elected(self, core: Raft, votes: Mapping[tuple[int, int], int]) -> None:
        """A node has become leader; `votes` has each node's vote in a term."""
        electorate = voters(self.in_force(core.log))
        if core.id not in electorate:
            raise Violation(f"node {core.id} leads term {core.term} and is no voter")
        # Of a node that is alone, nothing is ever sent: its vote is on its disk only.
        given = {voter for voter in electorate if votes.get((voter, core.term)) == core.id}
        if 2 * len(given | {core.id}) <= len(electorate):
            raise Violation(
                f"node {core.id} leads term {core.term} with votes of {sorted(given)}, the voters "
                f"are {sorted(electorate)}"
            )
