"""Plans a restore into a new data directory: what is read, what is made, what is refused.

Theory of operation. A restore makes the state of a recovery plan (`recovery.py`), a backup's own or
that of any moment, into the beginning of another history. The cluster that was backed up may have
gone on, and may still exist. So the restored node belongs to a new *lineage*: it and nodes of the
old one refuse each other, and its backups have a folder of their own. Sequences go on at a multiple
of 10^9 that is at least as far above the highest one in the repository, so that no number that a
caller has ever got is given again. The position's hash covers lineage and sequence.

The node is the only voter. Other members may be named: they are learners that become voters by
themselves once they have the data. They start empty, or are restored with the *token* that the
first restore returns: it has the log's first entry, so all of them have the same log. The first
node itself can't be restored again with it, since it would have forgotten what it has acknowledged
since.
"""

from __future__ import annotations

import base64
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgpack

from raftha.config.limits import MIB
from raftha.entry import Entry, EntryKind, LogPosition, decode_entry, follows, make_entry
from raftha.errors import (
    BackupDamaged,
    ConfigError,
    InvalidRequest,
    ObjectMissing,
    RepositoryError,
)
from raftha.membership import Member, Membership
from raftha.storage.backup import names
from raftha.storage.backup.chain import Shelf, find_manifest, load_chain
from raftha.storage.backup.manifest import Manifest, StoredManifest
from raftha.storage.backup.recovery import RecoveryPlan, plan_of_backup
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.timeline import SEQUENCE_STEP, begin_lineage
from raftha.storage.directory.datadir import new_incarnation

STATE_FACTOR = 1.6
"""A state's file is at most so many times as large as its pairs, but for small ones."""
LOG_FACTOR = 2
"""What a replayed log adds to a state is less than so many times the size of its segments, unless
each of its writes is a new key."""
SPARE_BYTES = 64 * MIB
TOKEN_FORMAT = 1
TOKEN_CHARS_MAX = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreTarget:
    """The node that a restore makes: its settings, and the other members.

    `others` become members of the new cluster too, without data unless they are restored with the
    token of this restore; with a `token`, they and all else come from it.
    """

    data_dir: Path
    cluster_name: str
    node_id: int
    own: Member
    segment_bytes: int
    others: Mapping[int, Member] = field(default_factory=dict)
    token: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RestorePlan:
    """What a restore reads and makes.

    `recovery` leads to the state, at `position`. `beginning` is the position that the new log
    begins at: with another sequence and hash. `lineage` is the new one. `entry` is the log's first
    one; the membership before it is known for sure when the log is replayed (`settle`).
    """

    target: RestoreTarget
    recovery: RecoveryPlan
    beginning: LogPosition
    lineage: str
    entry: Entry
    incarnation: int
    disk_bytes: int
    free_bytes: int

    @property
    def backup(self) -> Manifest:
        """The backup that is restored."""
        return self.recovery.backup

    @property
    def position(self) -> LogPosition:
        """The position of the state."""
        return self.recovery.position

    @property
    def size_bytes(self) -> int:
        """The bytes of all pairs that are read."""
        return self.recovery.size_bytes

    @property
    def size_compressed(self) -> int:
        """The bytes of all objects that are read."""
        return self.recovery.size_compressed

    @property
    def membership(self) -> Membership:
        """The members of the new cluster."""
        return Membership.decode(bytes(self.entry.payload))

    @property
    def token(self) -> str:
        """Text that the other members can be restored with.

        It names the backup; if log is replayed, only the moment, to which several backups lead.
        """
        is_replayed = self.recovery.needs_replay
        fields = [
            TOKEN_FORMAT,
            "" if is_replayed else self.backup.lineage,
            "" if is_replayed else self.backup.label,
            "" if is_replayed else self.recovery.links[-1].sha256,
            list(self.beginning),
            self.entry.data,
        ]
        packed: bytes = msgpack.packb(fields)
        return base64.urlsafe_b64encode(packed + sha256(packed).digest()[:8]).decode()

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as a dict, for JSON."""
        return {
            **self.recovery.as_dict(),
            "digest": "" if self.recovery.needs_replay else self.backup.digest,
            "data_dir": str(self.target.data_dir),
            "node_id": self.target.node_id,
            "members": sorted(self.membership.members),
            "new_lineage": self.lineage,
            "next_sequence": self.beginning.last_sequence + 1,
            "disk_bytes": self.disk_bytes,
            "free_bytes": self.free_bytes,
        }


def plan_restore(
    repository: Repository,
    lineage: str,
    label: str,
    target: RestoreTarget,
    *,
    random: Callable[[int], bytes] = os.urandom,
) -> RestorePlan:
    """Plan to restore a backup. Changes nothing.

    ChainBroken, ObjectMissing, BackupDamaged, KeyMissing: it can't be restored. ConfigError: not
    into this directory, or not as this node. InvalidRequest: the token is of another restore.
    """
    check_empty(target.data_dir)
    shelf = Shelf(repository.destinations, repository.id, repository.keys)
    links = load_chain(shelf, lineage, label)
    _check_listed(repository, links)
    return plan_recovered(repository, plan_of_backup(links), target, random=random)


def plan_recovered(
    repository: Repository,
    recovery: RecoveryPlan,
    target: RestoreTarget,
    *,
    random: Callable[[int], bytes] = os.urandom,
) -> RestorePlan:
    """Plan to restore the state that a recovery plan leads to. Changes nothing.

    ConfigError: not into this directory, or not as this node. InvalidRequest: the token is of
    another restore.
    """
    check_empty(target.data_dir)
    incarnation = new_incarnation()
    if target.token:
        lineage, beginning, entry = _read_token(target, recovery)
    else:
        lineage = random(16).hex()
        sequence = _next_sequence(highest_sequence(repository, recovery.backup))
        beginning = begin_lineage(recovery.position, lineage, sequence)
        membership = recovery.backup.membership
        entry = _first_entry(membership, target, lineage, incarnation, beginning)
    size = recovery.size_bytes + LOG_FACTOR * sum(p.log_bytes for p in recovery.all_plans())
    return RestorePlan(
        target=target,
        recovery=recovery,
        beginning=beginning,
        lineage=lineage,
        entry=entry,
        incarnation=incarnation,
        disk_bytes=int(STATE_FACTOR * size) + 2 * target.segment_bytes + SPARE_BYTES,
        free_bytes=shutil.disk_usage(_existing(target.data_dir)).free,
    )


def settle(plan: RestorePlan, membership: bytes | None) -> RestorePlan:
    """The plan, now that the membership of the restored state is known. ConfigError as before."""
    if plan.target.token or membership is None:
        return plan
    entry = _first_entry(membership, plan.target, plan.lineage, plan.incarnation, plan.beginning)
    return replace(plan, entry=entry)


def check_empty(data_dir: Path) -> None:
    """Raise ConfigError unless a data directory can be made at this path by a rename."""
    if os.path.lexists(data_dir) and (not data_dir.is_dir() or data_dir.is_symlink()):
        raise ConfigError(f"{data_dir} is not a folder")
    if data_dir.exists() and any(data_dir.iterdir()):
        raise ConfigError(
            f"{data_dir} is not empty",
            hint="restore into a new folder; move the old one away if you don't need it",
        )
    if data_dir.exists() and data_dir.is_mount():
        raise ConfigError(
            f"{data_dir} is a mount point, and a restore ends with a rename",
            hint="restore into a folder below it",
        )


def highest_sequence(repository: Repository, known: Manifest) -> int:
    """Return the highest sequence that the repository contains, in any lineage."""
    shelf = Shelf(repository.destinations, repository.id, repository.keys)
    highest = known.position.last_sequence
    newest: defaultdict[str, set[str]] = defaultdict(set)
    for destination in repository.destinations.values():
        for info in destination.list(""):
            with suppress(ValueError):
                found = names.parse_backup_object(info.name)
                if found.part == "manifest":
                    newest[found.lineage].add(found.label)
            with suppress(ValueError):
                highest = max(highest, names.parse_segment_name(info.name).sequence)
    for lineage, labels in newest.items():
        for label in sorted(labels, key=lambda label: -names.parse_label(label).begin_index):
            try:
                manifest = find_manifest(shelf, lineage, label).manifest
            except RepositoryError:
                continue  # The one before it is a little lower; the distance covers that.
            highest = max(highest, manifest.position.last_sequence)
            break
    return highest


def _next_sequence(highest: int) -> int:
    """Return where a new lineage's numbers begin: the old one may have gone on unseen."""
    return (highest // SEQUENCE_STEP + 2) * SEQUENCE_STEP


def _first_entry(
    membership: bytes,
    target: RestoreTarget,
    lineage: str,
    incarnation: int,
    beginning: LogPosition,
) -> Entry:
    try:
        before = Membership.decode(membership)
    except ValueError as error:
        raise BackupDamaged(f"its membership can't be read: {error}") from error
    members = {
        **{i: m._replace(is_voter=False, incarnation=0) for i, m in target.others.items()},
        target.node_id: target.own._replace(
            is_voter=True, is_standby=False, incarnation=incarnation
        ),
    }
    removed = before.removed & members.keys()
    if removed:
        raise ConfigError(
            f"node {min(removed)} was removed from this cluster before",
            hint="ids are never used again: restore as a node of another id",
        )
    cluster_id = before.cluster_id or lineage
    new = Membership(dict(sorted(members.items())), before.removed, cluster_id, lineage)
    term = beginning.term + 1
    return make_entry(beginning, term, 0, EntryKind.MEMBERSHIP, new.encode(), 0)


def _read_token(target: RestoreTarget, recovery: RecoveryPlan) -> tuple[str, LogPosition, Entry]:
    """Return the lineage, the beginning and the first entry that a token has."""
    bad = InvalidRequest("this is not the token of a restore")
    if len(target.token) > TOKEN_CHARS_MAX:
        raise bad
    try:
        whole = base64.b64decode(target.token.encode(), altchars=b"-_", validate=True)
        packed, checksum = whole[:-8], whole[-8:]
        if sha256(packed).digest()[:8] != checksum:
            raise ValueError("it was changed")
        version, lineage, label, digest, beginning, data = msgpack.unpackb(packed)
        if version != TOKEN_FORMAT:
            raise ValueError("it is of another version")
        entry = decode_entry(data)
        position = LogPosition(*beginning)
        membership = Membership.decode(bytes(entry.payload))
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise bad from error
    found = recovery.backup
    is_same = (lineage, label, digest) == (found.lineage, found.label, recovery.links[-1].sha256)
    if label and not is_same:
        raise InvalidRequest(
            f"the token is of a restore of {label}, not of {found.label}",
            hint="restore all members from the same backup",
        )
    if begin_lineage(recovery.position, membership.lineage, position.last_sequence) != position:
        raise InvalidRequest(
            "the token is of a restore to another moment",
            hint="restore all members to the same one",
        )
    if not follows(entry, position.hash):
        raise bad
    if target.node_id not in membership.members:
        raise InvalidRequest(
            f"node {target.node_id} is no member of the restored cluster",
            hint="name all members at the first restore, or start it empty and add it",
        )
    if membership.members[target.node_id].is_voter:
        raise InvalidRequest(
            f"node {target.node_id} has made this token, and can't be restored with it",
            hint="restore it without a token, as the first of a new cluster; or start it empty",
        )
    return membership.lineage, position, entry


def _check_listed(repository: Repository, links: list[StoredManifest]) -> None:
    """Raise ObjectMissing if an object of the chain is in no destination."""
    for link in links:
        folder = names.backup_folder(link.manifest.lineage, link.manifest.label)
        there: dict[str, set[int]] = {}
        for destination in repository.destinations.values():
            for info in destination.list(folder):
                there.setdefault(info.name, set()).add(info.size)
        for number, facts in enumerate(link.manifest.runs):
            name = link.manifest.run_name(number)
            if facts.size not in there.get(name, ()):
                raise ObjectMissing(
                    "it is missing, or has another size",
                    object_name=name,
                    hint="restore an older backup, or bring it back",
                )


def _existing(path: Path) -> Path:
    """The nearest folder on the way to `path` that is there."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())
