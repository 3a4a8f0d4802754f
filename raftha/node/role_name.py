"""What a node is at a moment, in one word, for its status."""

from __future__ import annotations

from raftha.core import Raft

STOPPED = "stopped"


def role_name(core: Raft, failure: str, *, is_waiting: bool) -> str:
    """The `role` of a node's status; `failure` is `Node.failure`."""
    if failure:
        return STOPPED if failure == STOPPED else "failed"
    if core.is_removed:
        return "removed"
    return "waiting" if is_waiting else core.role.value
