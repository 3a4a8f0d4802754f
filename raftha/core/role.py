"""The roles that a node may have in a term."""

from __future__ import annotations

import enum


class Role(enum.StrEnum):
    """A node's present role."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre_candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"
