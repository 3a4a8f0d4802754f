"""Members' new addresses that the log doesn't have yet: a file in a stopped node's data directory.

Theory of operation. If all members of a cluster move at once, no address in the log leads anywhere,
and without connections nothing can be added to the log. So `raftha move` records the new addresses
in each data directory (`raftha/runtime/moves.py` uses them). A *move* is valid only as long as the
log has for that member one of the addresses that it had when the move was recorded. A membership
that is newer than the record thus always wins, also if the file stays behind.

The file `moves` is JSON: `{"format": 1, "moves": [[id, [addresses before], address], ...],
"crc": number}`, where the number is the CRC-32 of the compact JSON of the moves. It is replaced as
a whole, durably.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from raftha.errors import Corrupt
from raftha.storage.files import load_list, replace_list

NAME = "moves"


class Move(NamedTuple):
    """One member's move: from any of the addresses `before` to `address`."""

    before: frozenset[str]
    address: str


def load(folder: Path) -> dict[int, Move]:
    """Return the recorded moves, by the member's id. Corrupt if the file is damaged."""
    path = folder / NAME
    try:
        found = load_list(path, "moves")
        return {int(i): Move(frozenset(before), str(now)) for i, before, now in found}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        hint = f"remove the file and run `raftha move` again on this node: {error}"
        raise Corrupt(path, 0, "not a list of moves", hint=hint) from error


def save(folder: Path, moves: Mapping[int, Move]) -> None:
    """Record these moves in place of all others; durable on return."""
    listed = [[i, sorted(move.before), move.address] for i, move in sorted(moves.items())]
    replace_list(folder / NAME, "moves", listed)


def forget(folder: Path) -> None:
    """Remove the record, if there is one. One that comes back after a crash does no harm."""
    (folder / NAME).unlink(missing_ok=True)
