"""What the log says of backups: the records of the catalog, and the entries that change it.

Payload of an ADMIN entry, msgpack: `[1, what, ...]`, with the fields of the class below that has
this `what`, in order; records in a list of their own.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, NamedTuple, get_origin, get_type_hints

import msgpack

from raftha.errors import UpgradeRequired
from raftha.storage.state.versions import ADMIN_FORMAT

PINS_MAX = 16
"""Pins of one backup."""
DESTINATIONS_MAX = 4
ITEMS_MAX = 1000
"""Ids, names, or fields in one field of an entry."""
TEXT_MAX = 500
"""Characters of a name, an error, a label."""

FULL, INCREMENTAL, DIFFERENTIAL = "full", "incremental", "differential"
MODES = {FULL: "F", INCREMENTAL: "I", DIFFERENTIAL: "D"}
"""The modes, and the letter of each in labels."""

RUNNING, COMPLETED, FAILED = "running", "completed", "failed"
MISSING, RETIRED = "missing", "retired"
STATES = (RUNNING, COMPLETED, FAILED, MISSING, RETIRED)

_INT_MAX = 1 << 63


class BackupRecord(NamedTuple):
    """What the catalog says of one backup.

    `id` is the index of the entry that began it, and `parent` and `base` are ids: of the backup
    that it builds on, and of the full one at the end of its chain; a full one has parent 0, and is
    its own base. `position_*`: the state that it holds; 0 until it is completed. `destinations`:
    where it is, or goes while it runs. Times are log time.
    """

    id: int
    mode: str
    parent: int
    base: int
    lineage: str
    node: int
    state: str
    destinations: tuple[str, ...]
    began_us: int
    ended_us: int = 0
    position_index: int = 0
    position_sequence: int = 0
    position_us: int = 0
    keys: int = 0
    size_bytes: int = 0
    size_compressed: int = 0
    digest: str = ""
    manifest: bytes = b""
    """SHA-256 of the manifest as it is stored."""
    error: str = ""
    errors: tuple[str, ...] = ()
    """Why it is not in the others of its destinations: "name: error"."""
    verify_level: int = 0
    reason: str = ""
    """Why it is a full one, if an incremental one was wanted."""
    pins: tuple[tuple[str, int], ...] = ()
    """Names, and until when; 0: until it is unpinned."""

    @property
    def label(self) -> str:
        """The name of its folder in a repository: time, mode and id."""
        return make_label(self.began_us, self.mode, self.id)

    def is_pinned(self, time_us: int) -> bool:
        """Whether a pin holds it at this log time."""
        return any(until == 0 or until > time_us for _, until in self.pins)


def make_label(time_us: int, mode: str, backup_id: int) -> str:
    """The label of a backup that began at this log time."""
    seconds = min(time_us // 1_000_000, 253402300799)  # The last second of the year 9999.
    stamp = datetime.fromtimestamp(seconds, UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"{stamp}-{MODES[mode]}-{backup_id:012x}"


class Mark(NamedTuple):
    """A named moment of the log."""

    name: str
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called
    sequence: int
    time_us: int


class Point(NamedTuple):
    """A moment of the log that the entry `noted` has made a recovery point.

    `digest`: that of the whole state, which `agreed` of the `voters` had then; empty if the
    members' states were not compared.
    """

    noted: int
    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called
    sequence: int
    time_us: int
    digest: bytes
    agreed: int
    voters: int

    @property
    def is_consistent(self) -> bool:
        """Whether a majority's states were compared, and were the same."""
        return 2 * self.agreed > self.voters


# ---------------------------------------------------------------- what an entry says


class Begin(NamedTuple):
    """Node `node` is to take a backup. `parent` is 0 for a full one."""

    node: int
    mode: str
    parent: int
    lineage: str
    destinations: tuple[str, ...]
    reason: str


class End(NamedTuple):
    """A backup is completed, and proven in these destinations; or it has failed: `error`."""

    id: int
    destinations: tuple[str, ...]
    position_index: int
    position_sequence: int
    position_us: int
    keys: int
    size_bytes: int
    size_compressed: int
    digest: str
    manifest: bytes
    verify_level: int
    errors: tuple[str, ...]
    error: str


class Adopt(NamedTuple):
    """A repository, listed as of entry `as_of`, holds this backup.

    `state`: completed, or failed if there are objects of it and no manifest.
    """

    as_of: int
    record: tuple[Any, ...]


class Found(NamedTuple):
    """A completed or missing backup is in these destinations."""

    id: int
    destinations: tuple[str, ...]


class Retire(NamedTuple):
    """These backups of one lineage are given up, all or none.

    Another lineage may live on elsewhere: its objects are not this cluster's to delete.
    """

    ids: tuple[int, ...]
    lineage: str


class Deleted(NamedTuple):
    """No destination has objects of these backups any more."""

    ids: tuple[int, ...]


class Pin(NamedTuple):
    """A backup is kept until this log time, in microseconds; 0: until it is unpinned."""

    id: int
    name: str
    until_us: int


class Unpin(NamedTuple):
    """A pin is taken away; "" stands for all of them."""

    id: int
    name: str


class MarkNow(NamedTuple):
    """The moment of this entry gets a name."""

    name: str


class Prepare(NamedTuple):
    """All members are to build the state as of command `to_sequence`: `recoveries.py`.

    `request` tells it from other ones, also if it is repeated. `to_us`: the time of that command.
    `backups`: the ids of those that the plan reads. `is_frozen`: 1 if writes stop at once. The
    recovery is given up after `timeout_s`. `reason`: what was asked for.
    """

    request: int
    lineage: str
    to_sequence: int
    to_us: int
    backups: tuple[int, ...]
    is_frozen: int
    timeout_s: int
    reason: str


class Restore(NamedTuple):
    """The state is now the one that was prepared, whose pairs have this digest.

    It has an entry of a kind of its own, RESTORE, which counts as one command.
    """

    id: int
    digest: str


class Abort(NamedTuple):
    """The recovery is given up; nothing has changed."""

    id: int
    error: str


class NotePoint(NamedTuple):
    """The moment of an entry before this one is a recovery point, as in `Point`."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called
    sequence: int
    time_us: int
    digest: bytes
    agreed: int
    voters: int


RecoveryChange = Prepare | Restore | Abort
Change = (
    Begin
    | End
    | Adopt
    | Found
    | Retire
    | Deleted
    | Pin
    | Unpin
    | MarkNow
    | NotePoint
    | RecoveryChange
)

_WHATS: dict[str, type[Any]] = {
    "begin": Begin,
    "end": End,
    "adopt": Adopt,
    "found": Found,
    "retire": Retire,
    "deleted": Deleted,
    "pin": Pin,
    "unpin": Unpin,
    "mark": MarkNow,
    "point": NotePoint,
    "prepare": Prepare,
    "restore": Restore,
    "abort": Abort,
}
_NAMES = {cls: what for what, cls in _WHATS.items()}


def _kinds(cls: type[Any]) -> tuple[type, ...]:
    return tuple(get_origin(kind) or kind for kind in get_type_hints(cls).values())


_KINDS: dict[type[Any], tuple[type, ...]] = {}


class Refused(Exception):
    """A change that the catalog refuses, for this reason."""


def encode_change(change: Change) -> bytes:
    """Return the payload of the ADMIN entry with this change. ValueError if it is none."""
    fields = tuple(change)
    _decode(_NAMES[type(change)], fields)
    packed: bytes = msgpack.packb([ADMIN_FORMAT, _NAMES[type(change)], *fields])
    return packed


def decode_change(what: str, fields: tuple[Any, ...]) -> Change:
    """Return the change in an ADMIN entry. UpgradeRequired if this version doesn't know it."""
    if what not in _WHATS:
        raise UpgradeRequired(f"the log has an entry {what!r:.40} that this version doesn't know")
    try:
        return _decode(what, fields)
    except ValueError as error:
        raise UpgradeRequired(f"an entry of the log can't be read: {error}") from error


def _decode(what: str, fields: tuple[Any, ...]) -> Change:
    change: Change = build(_WHATS[what], fields)
    if isinstance(change, Adopt):
        load_record(change.record)
    if isinstance(change, Begin | End | Found):
        _check_names(change.destinations)
    if isinstance(change, End):
        _check_names(change.errors)
    ids = change.ids if isinstance(change, Retire | Deleted) else ()
    ids = change.backups if isinstance(change, Prepare) else ids
    if any(type(each) is not int for each in ids):
        raise ValueError("the ids of backups are numbers")
    return change


def build(cls: type[Any], fields: Any) -> Any:
    """A record of this class with these fields, whose types are checked. ValueError."""
    kinds = _KINDS.get(cls) or _KINDS.setdefault(cls, _kinds(cls))
    if type(fields) not in (list, tuple) or len(fields) != len(kinds):
        raise ValueError(f"{cls.__name__} has {len(kinds)} fields")
    values = [tuple(v) if type(v) is list else v for v in fields]
    for value, kind in zip(values, kinds, strict=True):
        if type(value) is not kind or not _is_bounded(value):
            raise ValueError(f"{cls.__name__} has a wrong field: {value!r:.40}")
    return cls(*values)


def _is_bounded(value: Any) -> bool:
    if type(value) is int:
        return 0 <= value < _INT_MAX
    if type(value) is tuple:
        return len(value) <= ITEMS_MAX
    return len(value) <= TEXT_MAX


def load_record(fields: Any) -> BackupRecord:
    """The record with these fields. ValueError."""
    record: BackupRecord = build(BackupRecord, fields)
    if record.mode not in MODES or record.state not in STATES:
        raise ValueError("a backup has no such mode, or no such state")
    _check_names((*record.destinations, *record.errors))
    if len(record.pins) > PINS_MAX:
        raise ValueError("a backup has too many pins")
    pins = []
    for pin in record.pins:
        name, until = pin
        if type(name) is not str or type(until) is not int or not 0 <= until < _INT_MAX:
            raise ValueError("a pin is a name and a time")
        pins.append((name, until))
    return record._replace(pins=tuple(pins))


def _check_names(names: Iterable[Any]) -> None:
    for name in names:
        if type(name) is not str or not 0 < len(name) <= TEXT_MAX:
            raise ValueError(f"names have 1 to {TEXT_MAX} characters")
