"""When a node without a cluster founds one, and what it waits for until then.

Theory of operation. A node whose data directory is empty may be new. It may also be a member that
has lost its disk, so it must not make a cluster of its own beside the data that others have. It
*waits*: it connects to the members in its settings, gives no vote, and never campaigns. It joins
the cluster of a leader that sends it anything, or of a founder that has counted it in.

A cluster is founded once, by one node, which must have been told to (`Stance`):

    BOOTSTRAPS   `HaConfig.bootstrap`, or a node that is the only one in `members`. It founds once
                 *every* other member in its settings is connected and says that it has no cluster.
                 So a node that still has the setting and has lost its disk founds nothing: another
                 member is away, or says that it has a cluster.
    FOUNDS       `raftha init`: an operator has confirmed that no member has data. It founds once a
                 majority is connected and says so; for `GRACE_S` it waits for the others, too.

A node that hears of a cluster from any other node founds nothing in this run. If several nodes have
been told to, an operator's order comes first, then the lowest id.

The founder writes the first entry of the log: the membership, with the incarnation of every node
that it has heard as a voter, and the others as learners. This entry counts as committed, since no
other node can have another. No write is acknowledged before a majority of those voters has it.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from raftha.membership import Member, Membership

FOUNDING_INDEX = FOUNDING_TERM = 1
"""Index and term of the first entry of every log."""
GRACE_S = 1.0
"""How long a founder with a majority waits for the rest."""
LISTEN_S = 1.0
"""How long the only member in `members` waits for nodes that know it: more than the longest pause
between two of their calls."""


class Stance(enum.IntEnum):
    """What a node says of itself: whether it has a cluster, and if not, what it waits for."""

    MEMBER = 0
    WAITS = 1
    BOOTSTRAPS = 2
    FOUNDS = 3
    HEALS = 4
    """A member that lacks what it may have acknowledged."""


class Founding:
    """One node that has no cluster yet, and the nodes that it hears."""

    def __init__(
        self,
        node_id: int,
        incarnation: int,
        members: Mapping[int, Member],
        stance: Stance,
        now: float,
    ) -> None:
        """`members` are those in the settings; `now` is on the monotonic clock, in seconds."""
        assert stance not in (Stance.MEMBER, Stance.HEALS), "a member has a cluster"
        self.id = node_id
        self.stance = stance
        self._members = members
        self._empty: dict[int, tuple[int, Stance]] = {node_id: (incarnation, stance)}
        self._clusters: dict[int, str] = {}
        self._began_at = now
        self._majority_since: float | None = None

    def heard(self, peer: int, cluster_id: str, incarnation: int, stance: Stance) -> None:
        """A node has connected; `cluster_id` is "" if it has none either."""
        if cluster_id:
            self._clusters[peer] = cluster_id
            self._empty.pop(peer, None)
        elif peer in self._members:
            self._empty[peer] = incarnation, stance

    def gone(self, peer: int) -> None:
        """The connection to a node has ended. What it has said about a cluster stays true."""
        self._empty.pop(peer, None)

    def decide(self, now: float) -> dict[int, int] | None:
        """Return the voters to found a cluster with, id -> incarnation; None to wait."""
        count = len(self._empty)
        if 2 * count <= len(self._members):
            self._majority_since = None
        elif self._majority_since is None:
            self._majority_since = now
        if not self._may_found() or self._is_too_early(now):
            return None
        return {peer: incarnation for peer, (incarnation, _) in sorted(self._empty.items())}

    def _may_found(self) -> bool:
        """Whether this node has been told to, none has data, and no other node comes first."""
        if self.stance is Stance.WAITS or self._clusters:
            return False
        order = [(-stance, peer) for peer, (_, stance) in self._empty.items()]
        return min(order)[1] == self.id

    def _is_too_early(self, now: float) -> bool:
        """Whether members that may have data haven't been heard yet."""
        if self._majority_since is None:
            return True
        if len(self._members) == 1:
            return self.stance is not Stance.FOUNDS and now - self._began_at < LISTEN_S
        if len(self._empty) == len(self._members):
            return False
        return self.stance is not Stance.FOUNDS or now - self._majority_since < GRACE_S

    def message(self) -> str:
        """What this node waits for, for operators."""
        if self._clusters:
            peers = ", ".join(str(peer) for peer in sorted(self._clusters))
            return (
                f"this node is empty and waits for the leader of the cluster that node {peers} "
                "belongs to; it must be a member there under this id"
            )
        missing = ", ".join(str(i) for i in sorted(self._members.keys() - self._empty.keys()))
        if self.stance is Stance.WAITS:
            return (
                "this node is empty and waits for a cluster: start its members; if there is none "
                "yet, run `raftha init` on ONE node, or set bootstrap there"
            )
        if not missing:
            return "this node is empty, and a cluster is about to be founded"
        if self.stance is Stance.FOUNDS:
            return f"this node founds a cluster once it hears a majority; missing: node {missing}"
        return (
            f"this node founds a cluster once every member says that it is empty; missing: node "
            f"{missing}; if one can't be started, run `raftha init` on ONE node"
        )


def is_another(incarnation: int, recorded: int) -> bool:
    """Whether a cluster that has `recorded` for a node knows another data directory of it."""
    return recorded not in (0, incarnation)


def first_membership(
    members: Mapping[int, Member], voters: Mapping[int, int], cluster_id: str, lineage: str
) -> Membership:
    """The membership that a cluster begins with: `voters` with their incarnations, and learners."""
    return Membership(
        {
            i: member._replace(is_voter=i in voters, incarnation=voters.get(i, 0))
            for i, member in sorted(members.items())
        },
        frozenset(),
        cluster_id,
        lineage,
    )
