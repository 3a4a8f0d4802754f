"""What backups need of a checkpoint's meta: read, and changed for a restore, without a state.

All formats of the meta (`state.py`) begin with the same fields, of which these are the first three:
version, applied, membership. The others pass through unchanged, but for one: a backup holds the
state as of a moment at which it ran itself. The state that is restored from it has no such backup.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple

import msgpack

from raftha.entry import LogPosition
from raftha.storage.state.catalog import FIELDS, Catalog

FIELDS_WITH_CATALOG = 6
"""The catalog is the last field, from format 6 on."""


class MetaFacts(NamedTuple):
    """The format of a checkpoint's meta, the checkpoint's position, and its membership."""

    version: int
    position: LogPosition
    membership: bytes | None


def read_meta(meta: bytes) -> MetaFacts:
    """Read a checkpoint's meta. ValueError if it isn't one."""
    version, applied, membership = _unpack(meta)[:3]
    return MetaFacts(version, LogPosition(*applied), membership)


def move_meta(meta: bytes, position: LogPosition, membership: bytes) -> bytes:
    """Return the meta as of another position, with another membership. ValueError if it is none."""
    fields = _unpack(meta)
    fields[1:3] = [list(position), membership]
    if len(fields) == FIELDS_WITH_CATALOG:
        catalog = Catalog.load(fields[-1])
        catalog.forget_running()
        fields[-1] = catalog.dump(has_recovery=len(fields[-1]) == FIELDS)
    packed: bytes = msgpack.packb(fields)
    return zlib.crc32(packed).to_bytes(4, "little") + packed


def read_catalog(meta: bytes) -> Catalog:
    """Read the catalog in a checkpoint's meta; an empty one if it has none. ValueError."""
    fields = _unpack(meta)
    return Catalog.load(fields[-1]) if len(fields) == FIELDS_WITH_CATALOG else Catalog()


def _unpack(meta: bytes) -> list[Any]:
    if len(meta) < 4 or zlib.crc32(meta[4:]).to_bytes(4, "little") != meta[:4]:
        raise ValueError("the checkpoint's meta is damaged")
    try:
        fields = msgpack.unpackb(meta[4:], raw=False, strict_map_key=False)
    except msgpack.UnpackException as error:
        raise ValueError(f"the checkpoint's meta can't be read: {error}") from error
    if type(fields) is not list or len(fields) < 3:
        raise ValueError("the checkpoint's meta has too few fields")
    version, applied, membership = fields[:3]
    is_position = (
        type(applied) is list
        and len(applied) == 5
        and all(type(number) is int and number >= 0 for number in applied[:4])
        and type(applied[4]) is bytes
    )
    if type(version) is not int or not is_position or type(membership) not in (bytes, type(None)):
        raise ValueError("the checkpoint's meta is of an unknown format")
    return fields
