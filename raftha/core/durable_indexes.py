"""Which member has how much of the committed log on its disk, as far as this node knows.

Theory of operation. A leader counts disks; with the commit index it tells its followers by how many
entries each member's disk is behind it, so that every node can say who has what it applies. What a
member holds of the committed log it never lets go of, and it is the same under every leader: so
what was learned once stays true, and these indexes only ever grow. Only a member that loses its log
has less for a while; it gets it back before it counts again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from raftha.config import MEMBERS_MAX

BEHIND_MAX = 2 * MEMBERS_MAX
"""Numbers in a message that says who is how far behind."""


class DurableIndexes:
    """For each member the last committed entry that is known to be on its disk."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}

    def learn(self, commit: int, behind: tuple[int, ...]) -> None:
        """A leader with this commit index says who is how far behind it; see `encode_behind`."""
        known = self._known
        numbers = iter(behind)
        for node_id, distance in zip(numbers, numbers, strict=True):
            index = commit - distance
            if index > known.get(node_id, 0):
                known[node_id] = index

    def holders(self, index: int) -> Iterator[int]:
        """Those that have this committed entry, in no order."""
        return (node_id for node_id, last in self._known.items() if last >= index)


def encode_behind(commit: int, matches: Iterable[tuple[int, int]]) -> tuple[int, ...]:
    """Member by member: its id, and how many entries up to `commit` its disk lacks.

    Small numbers, nearly always 0, rather than indexes: they travel with every append.
    """
    behind: list[int] = []
    for node_id, match in matches:
        behind += (node_id, commit - match if match < commit else 0)
    return tuple(behind)
