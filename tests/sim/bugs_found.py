"""Bugs to plant in founding, and in the return of nodes that lost their disks. See `bugs.py`."""

from __future__ import annotations

from raftha.core.followers import Followers
from raftha.core.healing_generation import HealingGeneration
from raftha.core.incarnations import Incarnations
from raftha.core.leader import Leadership
from raftha.node import founding
from raftha.node.founding import Founding, Stance
from raftha.runtime import introductions
from tests.sim.planting import Bug, Patch


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
    """A node that has lost its directory counts at once, with what it once acknowledged."""
    return [
        (founding, "is_another", lambda incarnation, recorded: False),
        (introductions, "refusal", lambda core, hello: ""),
        (Incarnations, "is_of_other_disk", lambda self, message: False),
        *generations_outlive_disks(),
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


BUGS: tuple[Bug, ...] = (
    bootstrap_asks_none,
    bootstrap_ignores_clusters,
    wiped_node_counts,
    disk_never_recorded,
    generations_outlive_disks,
)
