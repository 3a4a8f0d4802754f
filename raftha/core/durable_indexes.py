"""How much of the committed log each member has on its disk, as far as this node knows.

Theory of operation. A leader counts disks. With the commit index it sends its followers how many
entries each member's disk is behind. So every node can name the members that hold an entry it
applies. A member never drops committed entries, and they are the same under every leader: what a
node has learned stays true, and these indexes only grow. A member that loses its log holds less for
a while, and gets it back before it counts again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from raftha.config import MEMBERS_MAX

BEHIND_MAX = 2 * MEMBERS_MAX
"""The most numbers in a message that lists how far each member is behind."""


class DurableIndexes:
    """For each member, the last committed entry known to be on its disk."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}

    def learn(self, commit: int, behind: tuple[int, ...]) -> None:
        """Record how far each member is behind a leader's commit index; see `encode_behind`."""
        known = self._known
        numbers = iter(behind)
        for node_id, distance in zip(numbers, numbers, strict=True):
            index = commit - distance
            if index > known.get(node_id, 0):
                known[node_id] = index

    def record(self, commit: int, matches: Mapping[int, int]) -> None:
        """As the leader: record what each member's disk has, up to the commit index."""
        known = self._known
        for node_id, match in matches.items():
            index = min(match, commit)
            if index > known.get(node_id, 0):
                known[node_id] = index

    def holders(self, index: int) -> Iterator[int]:
        """The members that have this committed entry, in no order."""
        return (node_id for node_id, last in self._known.items() if last >= index)


def encode_behind(commit: int, matches: Mapping[int, int]) -> tuple[int, ...]:
    """For each member, its id and how many entries up to `commit` its disk lacks.

    These are small numbers, nearly always 0, because they travel with every append.
    """
    behind: list[int] = []
    for node_id, match in matches.items():
        behind += (node_id, commit - match if match < commit else 0)
    return tuple(behind)
