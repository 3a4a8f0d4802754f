"""The names of all objects of a repository, and what they say: a plan needs only names.

    repository.json                               which repository this is
    keys/<key id>-<version>.json                  a data key, wrapped under the operator's key
    lineages/<lineage>.json                       which history this is, and where it forked
    <lineage>/backups/<label>/run-0000 ...        a backup's data
    <lineage>/backups/<label>/manifest            written last: from here on the backup exists
    <lineage>/backups/<label>/verified            what was checked, and when
    <lineage>/log/<level>/<first>-<last>-<sequence>-<time_us>
    <lineage>/gaps/<first>-<last>                 entries that no member had any more
    <lineage>/restores/<index>-<sequence>-<to_sequence>-<time_us>
                                                  an entry that went back to an earlier state
    <lineage>/drills/<time_us>.json               the report of a restore for proof

A label is `20261127T093012Z-F-00000012f3a0`: the log's time, the mode (F full, I incremental,
D differential), and the index of the log entry that began the backup. Consensus makes that index
unique, so two backups never share a label. Whole numbers in names are hexadecimal and have a fixed
width, so that names sort as their numbers do.

Anyone who can write to a bucket chooses names in it. So each `parse_*` accepts exactly what its
counterpart makes and raises ValueError otherwise, and `check_name` accepts no name that could lead
out of a folder.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

NAME_BYTES_MAX = 512
PARTS_MAX = 8
"""How deep an object lies, at most: folders and its own name."""
RUNS_MAX = 10_000
"""How many objects a run has at most."""
_MODES = "FID"
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PART = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_LABEL = re.compile(r"(\d{8}T\d{6}Z)-([FID])-([0-9a-f]{12})", re.ASCII)
_ID = re.compile(r"[0-9a-f]{32}")
_KEY = re.compile(r"keys/([0-9a-f]{32})-([1-9][0-9]{0,5})\.json")
_BACKUP = re.compile(r"([0-9a-f]{32})/backups/([^/]{1,64})/(run-[0-9]{4}|manifest|verified)")
_SEGMENT = re.compile(
    r"([0-9a-f]{32})/log/([01])/([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{16})"
)
_GAP = re.compile(r"([0-9a-f]{32})/gaps/([0-9a-f]{16})-([0-9a-f]{16})")
_RESTORE = re.compile(
    r"([0-9a-f]{32})/restores/([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{16})"
)
_DRILL = re.compile(r"([0-9a-f]{32})/drills/([0-9a-f]{16})\.json")
_LINEAGE = re.compile(r"lineages/([0-9a-f]{32})\.json")


class Label(NamedTuple):
    """What a backup's label says."""

    time_us: int
    """The log's time at the beginning, in whole seconds."""
    mode: str
    begin_index: int


class BackupObject(NamedTuple):
    """What the name of an object of a backup says."""

    lineage: str
    label: str
    part: str
    """`manifest`, `verified`, or `run-0000` and so on."""


class SegmentName(NamedTuple):
    """What the name of a log segment says: its entries, sequence and time of the last one."""

    lineage: str
    level: int
    first: int
    last: int
    sequence: int
    time_us: int


class GapName(NamedTuple):
    """What the name of a gap's record says: the first and last index that are missing."""

    lineage: str
    first: int
    last: int


class RestoreName(NamedTuple):
    """What the name of a restore's record says.

    The RESTORE entry has this index, sequence and time. The state behind it is the one of
    `to_sequence`.
    """

    lineage: str
    index: int  # type: ignore[assignment]  # shadows tuple.index, which has no callers
    sequence: int
    to_sequence: int
    time_us: int


def check_name(name: str) -> list[str]:
    """Return the parts of an object's name; ValueError if it isn't one."""
    if not name or len(name) > NAME_BYTES_MAX:
        raise ValueError(f"an object's name has 1 to {NAME_BYTES_MAX} characters")
    parts = name.split("/")
    if len(parts) > PARTS_MAX or not all(_PART.fullmatch(part) for part in parts):
        raise ValueError(f"not an object's name: {name[:80]!a}")
    return parts


def check_folder(prefix: str) -> list[str]:
    """Return the parts of a folder's name, of which "" has none; ValueError if it isn't one."""
    return check_name(prefix.removesuffix("/")) if prefix else []


def is_name(name: str) -> bool:
    """True if a store's object can belong to a repository."""
    try:
        check_name(name)
    except ValueError:
        return False
    return True


def label(time_us: int, mode: str, begin_index: int) -> str:
    """Make the label of the backup that the entry at `begin_index` began."""
    if mode not in _MODES or len(mode) != 1:
        raise ValueError(f"a backup's mode is F, I or D, not {mode!a}")
    if not 0 < begin_index < 1 << 48:
        raise ValueError(f"no index for a label: {begin_index}")
    try:
        moment = _EPOCH + timedelta(seconds=time_us // 1_000_000)
    except OverflowError:
        raise ValueError(f"no time for a label: {time_us}") from None
    # isoformat pads the year to four digits, strftime does not.
    stamp = moment.replace(tzinfo=None).isoformat().replace("-", "").replace(":", "")
    return f"{stamp}Z-{mode}-{begin_index:012x}"


def parse_label(text: str) -> Label:
    """Read a label; ValueError if `label` doesn't make it."""
    found = _LABEL.fullmatch(text)
    if not found:
        raise ValueError(f"not a backup's label: {text[:80]!a}")
    moment = datetime.strptime(found[1], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    read = Label((moment - _EPOCH) // timedelta(microseconds=1), found[2], int(found[3], 16))
    if label(*read) != text:
        raise ValueError(f"not a backup's label: {text[:80]!a}")
    return read


def repository_name() -> str:
    """Return the name of the object that says which repository this is."""
    return "repository.json"


def keys_folder() -> str:
    """Return the folder of the wrapped data keys."""
    return "keys/"


def key_name(key_id: str, version: int) -> str:
    """Return the name of a wrapped data key; each operator's key makes a new version."""
    return _made(f"keys/{key_id}-{version}.json", _KEY)


def parse_key_name(name: str) -> tuple[str, int]:
    """Return a data key's id and version; ValueError if it isn't the name of one."""
    found = _match(_KEY, name)
    return found[1], int(found[2])


def lineages_folder() -> str:
    """Return the folder of the lineages' descriptions: listing it costs one request."""
    return "lineages/"


def lineage_name(lineage: str) -> str:
    """Return the name of a lineage's description."""
    return _made(f"lineages/{lineage}.json", _LINEAGE)


def parse_lineage_name(name: str) -> str:
    """Return the lineage that this describes; ValueError if it isn't the name of one."""
    return _match(_LINEAGE, name)[1]


def backups_folder(lineage: str) -> str:
    """Return the folder of a lineage's backups."""
    if not _ID.fullmatch(lineage):
        raise ValueError(f"not a lineage: {lineage[:80]!a}")
    return f"{lineage}/backups/"


def backup_folder(lineage: str, of_label: str) -> str:
    """Return the folder of one backup."""
    parse_label(of_label)
    return f"{backups_folder(lineage)}{of_label}/"


def run_name(lineage: str, of_label: str, number: int) -> str:
    """Return the name of the `number`-th object of a backup's run, from 0 on."""
    if not 0 <= number < RUNS_MAX:
        raise ValueError(f"a run has at most {RUNS_MAX} objects")
    return f"{backup_folder(lineage, of_label)}run-{number:04}"


def manifest_name(lineage: str, of_label: str) -> str:
    """Return the name of a backup's manifest."""
    return f"{backup_folder(lineage, of_label)}manifest"


def verified_name(lineage: str, of_label: str) -> str:
    """Return the name of the record of a backup's verification."""
    return f"{backup_folder(lineage, of_label)}verified"


def parse_backup_object(name: str) -> BackupObject:
    """Return what the name of a backup's object says; ValueError if it isn't one."""
    found = _match(_BACKUP, name)
    parse_label(found[2])
    return BackupObject(found[1], found[2], found[3])


def log_folder(lineage: str, level: int | None = None) -> str:
    """Return the folder of a lineage's log segments, of all levels or of one."""
    if not _ID.fullmatch(lineage) or level not in (None, 0, 1):
        raise ValueError(f"not the name of a lineage's log: {lineage[:80]!a}, level {level}")
    return f"{lineage}/log/" if level is None else f"{lineage}/log/{level}/"


def gaps_folder(lineage: str) -> str:
    """Return the folder of a lineage's records of missing entries."""
    return log_folder(lineage).removesuffix("log/") + "gaps/"


def restores_folder(lineage: str) -> str:
    """Return the folder of the records of a lineage's RESTORE entries."""
    return log_folder(lineage).removesuffix("log/") + "restores/"


def segment_name(segment: SegmentName) -> str:
    """Return the name of a log segment."""
    lineage, level, *numbers = segment
    fields = "-".join(f"{number:016x}" for number in numbers)
    return _made(f"{lineage}/log/{level}/{fields}", _SEGMENT)


def parse_segment_name(name: str) -> SegmentName:
    """Return what a segment's name says; ValueError if it isn't one, or is an impossible one."""
    found = _match(_SEGMENT, name)
    numbers = [int(field, 16) for field in found.groups()[2:]]
    segment = SegmentName(found[1], int(found[2]), *numbers)
    if not 0 < segment.first <= segment.last:
        raise ValueError(f"an impossible segment: {name[:80]!a}")
    return segment


def gap_name(gap: GapName) -> str:
    """Return the name of the record of entries that are missing."""
    return _made(f"{gap.lineage}/gaps/{gap.first:016x}-{gap.last:016x}", _GAP)


def parse_gap_name(name: str) -> GapName:
    """Return what a gap's name says; ValueError if it isn't one, or is an impossible one."""
    found = _match(_GAP, name)
    gap = GapName(found[1], int(found[2], 16), int(found[3], 16))
    if not 0 < gap.first <= gap.last:
        raise ValueError(f"an impossible gap: {name[:80]!a}")
    return gap


def restore_name(restore: RestoreName) -> str:
    """Return the name of the record of a RESTORE entry."""
    lineage, *numbers = restore
    return _made(f"{lineage}/restores/" + "-".join(f"{n:016x}" for n in numbers), _RESTORE)


def parse_restore_name(name: str) -> RestoreName:
    """Return what a restore's name says; ValueError if it isn't one, or is an impossible one."""
    found = _match(_RESTORE, name)
    restore = RestoreName(found[1], *(int(field, 16) for field in found.groups()[1:]))
    if not (restore.index and restore.to_sequence < restore.sequence):
        raise ValueError(f"an impossible restore: {name[:80]!a}")
    return restore


def drills_folder(lineage: str) -> str:
    """Return the folder of the reports of a lineage's drills."""
    return log_folder(lineage).removesuffix("log/") + "drills/"


def drill_name(lineage: str, time_us: int) -> str:
    """Return the name of the report of the drill that began at this time."""
    return _made(f"{lineage}/drills/{time_us:016x}.json", _DRILL)


def parse_drill_name(name: str) -> tuple[str, int]:
    """Return the lineage and the time of a drill; ValueError if it isn't the name of a report."""
    found = _match(_DRILL, name)
    return found[1], int(found[2], 16)


def _match(pattern: re.Pattern[str], name: str) -> re.Match[str]:
    found = pattern.fullmatch(name)
    if not found:
        raise ValueError(f"another name was expected: {name[:80]!a}")
    return found


def _made(name: str, pattern: re.Pattern[str]) -> str:
    _match(pattern, name)
    return name
