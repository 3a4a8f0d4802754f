"""Which messages of peers a node acts on: what can't be true, and what strangers send, is dropped.

Theory of operation. Without TLS anyone on the machine can connect under an unused id, and with TLS
a certificate may exist before its node is a member. So a message must pass two rules:

  M1  A message's term is at most `TERM_JUMP_MAX` above this node's. No cluster holds so many
      elections, and a term near the largest number would leave no room for the next one. A
      violation is a WireError, which closes the connection.
  M2  A node that follows a live leader, or leads, drops messages of ids that aren't in its
      membership: their terms, votes, entries, snapshots and requests. Only checks of health, and
      what a build supports, are answered, since they change nothing.

M2 needs the leader. A node that was away knows an old membership, and its leader may be a stranger
to it (thesis 4.1). Such a node has no live leader that it knows, so it accepts everything. A
dropped message counts as lost, and Raft sends it again.
"""

from __future__ import annotations

from raftha.core import Raft
from raftha.errors import WireError
from raftha.node.messages import HealthReply, HealthRequest, PeerMessage, Supported

TERM_JUMP_MAX = 1 << 32
_OF_ANY = HealthRequest | HealthReply | Supported


class SenderCheck:
    """Applies M1 and M2 for one node."""

    def __init__(self, core: Raft, leader_timeout_s: float) -> None:
        """A leader is live until it has been silent for `leader_timeout_s`."""
        self._core = core
        self._leader_timeout_s = leader_timeout_s
        self._leader_contact_at = float("-inf")

    def admits(self, message: PeerMessage, now: float) -> bool:
        """Whether the node acts on `message`. WireError if it breaks M1."""
        core = self._core
        term = getattr(message, "term", 0)
        if term > core.term + TERM_JUMP_MAX:
            raise WireError(f"term {term} is far beyond this node's term {core.term}")
        if message.sender in core.log.membership.members:
            if message.sender == core.leader:
                self._leader_contact_at = now
            return True
        return not self._has_live_leader(now) or isinstance(message, _OF_ANY)

    def _has_live_leader(self, now: float) -> bool:
        core = self._core
        if core.is_leader:
            return True
        is_live = now - self._leader_contact_at < self._leader_timeout_s
        return is_live and core.leader in core.membership.members
