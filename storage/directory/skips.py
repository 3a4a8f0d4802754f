"""Entries that an operator has a stopped node skip: a file in its data directory.

Theory of operation. An entry with a command that ends every node can't be taken out of the log, as
it is committed. Instead each node passes over its commands: their outcome is a failure of kind
`Skipped`, and they change nothing. That is safe only if all nodes do the same. So

- an entry is named by index and hash, and nothing is skipped that doesn't match both;
- a node that has applied the entry into its checkpoint can't skip it any more;
- two nodes whose files differ refuse each other (`fingerprint`, in `Hello`), so that only nodes
  that skip the same can be a majority.

The file `skips` is JSON: `{"format": 1, "entries": [[index, hash], ...], "crc": number}`, where the
number is the CRC-32 of the compact JSON of the entries. It is replaced as a whole, durably.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from raftha.entry import HASH_BYTES
from raftha.errors import Corrupt, InvalidRequest
from raftha.storage.files import compact_json, load_list, replace_list

NAME = "skips"
SKIPS_MAX = 100
_HINT = "copy the file from a node that has one; if none has, no entry is skipped: remove it"


def load(folder: Path) -> dict[int, bytes]:
    """Return the hash of each entry to skip, by its index. Corrupt if the file is damaged."""
    path = folder / NAME
    try:
        found = load_list(path, "entries")
        return {int(index): bytes.fromhex(digest) for index, digest in found}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Corrupt(path, 0, f"not a list of entries to skip: {error}", hint=_HINT) from error


def add(folder: Path, index: int, digest: bytes) -> None:
    """Have the node skip this entry from its next start on; durable on return."""
    entries = load(folder)
    if entries.get(index, digest) != digest:
        raise InvalidRequest(f"another entry {index} is skipped already")
    if len(digest) != HASH_BYTES or index < 1:
        raise InvalidRequest(f"an entry has an index from 1 on and a hash of {HASH_BYTES} bytes")
    entries[index] = digest
    if len(entries) > SKIPS_MAX:
        raise InvalidRequest(f"at most {SKIPS_MAX} entries can be skipped")
    replace_list(folder / NAME, "entries", _listed(entries))


def fingerprint(entries: Mapping[int, bytes]) -> str:
    """Return a short text that is equal for equal lists only; "" for none."""
    if not entries:
        return ""
    return sha256(compact_json(_listed(entries))).hexdigest()[:32]


def _listed(entries: Mapping[int, bytes]) -> list[Any]:
    return [[index, entries[index].hex()] for index in sorted(entries)]
