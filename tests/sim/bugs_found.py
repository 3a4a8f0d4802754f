"""Bugs to plant in founding, in the return of nodes that lost their disks, and in recoveries.

See `bugs.py`.
"""

from __future__ import annotations

from pathlib import Path

from raftha.core.followers import Followers
from raftha.core.healing_generation import HealingGeneration
from raftha.core.incarnations import Incarnations
from raftha.core.leader import Leadership
from raftha.node import founding
from raftha.node.founding import Founding, Stance
from raftha.runtime import introductions, quorum_recovery
from raftha.runtime.quorum_recovery import Plan, Survivor
from raftha.storage.directory import skips
from tests.sim.planting import Bug, Patch, patched


def bootstrap_asks_none() -> list[Patch]:
    """An empty node that was told to bootstrap founds a cluster without the other members."""
    return [(Founding, "_is_too_early", lambda self, now: False)]


def bootstrap_ignores_clusters() -> list[Patch]:
    """An empty node takes members of a cluster for empty ones, and founds another."""
    original = Founding.heard

    def heard(self: Founding, peer: int, cluster_id: str, incarnation: int, stance: Stance) -> None:
        original(self, peer, "", incarnation, Stance.WAITS)

    return [(Founding, "heard", heard)]


def wiped_node_counts() -> list[Patch]:
    """A node that has lost its directory votes and counts at once under its old id."""
    return [
        (founding, "is_another", lambda incarnation, recorded: False),
        (introductions, "refusal", lambda core, hello: ""),
        (Incarnations, "is_of_other_disk", lambda self, message: False),
    ]


def disk_never_recorded() -> list[Patch]:
    """A node that lost its directory is healed, but the log never records the new one."""
    return [(Leadership, "_is_disk_recorded", lambda self, peer: True)]


def generations_outlive_disks() -> list[Patch]:
    """A leader goes by what an earlier directory of a node has replied."""
    return [
        (HealingGeneration, "forget", lambda self, peer: None),
        (Followers, "forget", lambda self, peer: None),
    ]


def empty_majority_founds() -> list[Patch]:
    """Empty nodes found a cluster as soon as they are a majority, without an operator's order."""

    def is_too_early(self: Founding, now: float) -> bool:
        return self._majority_since is None

    return [(Founding, "_is_too_early", is_too_early)]


def recovery_gives_up_a_tail() -> list[Patch]:
    """A survivor drops what it doesn't know to be committed, and what was acknowledged with it."""
    original = Survivor.plan

    def plan(self: Survivor) -> Plan:
        del self._log.window[self._log.commit - self._log.anchor.index :]
        return original(self)

    return [(Survivor, "plan", plan)]


def recovery_keeps_the_incarnation() -> list[Patch]:
    """A survivor goes on under the incarnation that the members of the old cluster know."""
    original = Survivor.recover

    def recover(self: Survivor, plan: Plan) -> Path:
        kept = self._data.incarnation
        with patched([(quorum_recovery, "new_incarnation", lambda: kept)]):
            return original(self, plan)

    return [(Survivor, "recover", recover)]


def skips_not_compared() -> list[Patch]:
    """Nodes take part together though one skips an entry that another one applies."""
    return [(skips, "fingerprint", lambda entries: "")]


BUGS: tuple[Bug, ...] = (
    bootstrap_asks_none,
    bootstrap_ignores_clusters,
    wiped_node_counts,
    disk_never_recorded,
    generations_outlive_disks,
    empty_majority_founds,
    recovery_gives_up_a_tail,
    recovery_keeps_the_incarnation,
    skips_not_compared,
)
