"""Restores a backup into a new data directory, as the beginning of another history.

Theory of operation. A restore reads a chain of backups and makes a data directory from which a node
starts. `plan_restore` changes nothing and refuses what can't succeed; `run_restore` does the work
in a folder beside the directory, and renames it last. So after a crash there is no directory, or
the whole one, and the next try removes what is left:

    1  the full backup's pairs, appended to a new LMDB file; then each delta's
    2  the meta, moved to the new position; everything is synced
    3  all pairs are read again: their digest must be the one that the backup's node computed
    4  the log: it begins behind the position with one entry, the new membership
    5  identity and `RESTORED`; sync; rename; sync

The cluster that was backed up may have gone on after the backup, and may still exist. So the
restored node belongs to a new *lineage*: it and nodes of the old one refuse each other, and its
backups have a folder of their own. Sequences go on at a multiple of 10^9 that is at least as far
above the highest one in the repository, so that no number that a caller has ever got is given
again. The position's hash covers lineage and sequence, so nothing of two restores is mistaken for
each other.

The node is the only voter. Other members may be named: they are learners that become voters by
themselves once they have the data. They start empty, or are restored with the *token* that the
first restore returns: it has the entry of step 4, so all of them have the same log. The first node
itself can't be restored again with it, since it would have forgotten what it has acknowledged
since.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fcntl import LOCK_EX, LOCK_NB, flock
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgpack

from raftha.config.limits import MIB
from raftha.entry import (
    HASH_BYTES,
    Entry,
    EntryKind,
    HardState,
    LogPosition,
    decode_entry,
    follows,
    make_entry,
)
from raftha.errors import (
    BackupDamaged,
    ConfigError,
    InvalidRequest,
    ObjectMissing,
    RepositoryError,
    StorageFull,
)
from raftha.membership import Member, Membership
from raftha.storage.backup import names
from raftha.storage.backup.chain import Shelf, find_manifest, load_chain, read_backup
from raftha.storage.backup.manifest import Manifest, StoredManifest
from raftha.storage.backup.pairs import Piece
from raftha.storage.backup.pool import Pool, serial_pool
from raftha.storage.backup.repository import Repository
from raftha.storage.backup.runs import MetaParts
from raftha.storage.backup.uploads import BackupCancelled
from raftha.storage.directory.datadir import DataDirectory, new_incarnation
from raftha.storage.files import sync_folder
from raftha.storage.log.disk import RealDisk
from raftha.storage.log.wal import Wal
from raftha.storage.state.blocks import encode_pairs
from raftha.storage.state.builder import StoreBuilder
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.meta import move_meta, read_meta
from raftha.storage.state.store import Hasher
from raftha.version import VERSION

SEQUENCE_STEP = 10**9
"""A restored cluster numbers its commands from a multiple of this on, which leaves at least as many
numbers free behind the highest one in the repository."""
STATE_FACTOR = 1.6
"""A state's file is at most so many times as large as its pairs, but for small ones."""
SPARE_BYTES = 64 * MIB
FETCHERS = 2
TOKEN_FORMAT = 1
TOKEN_CHARS_MAX = 1 << 20
RESTORED = "RESTORED"
"""The file in the data directory that says what it was restored from."""


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

    `links` are the backups, the full one first; `position` is that of the state, and `beginning`
    that of the new log: with another sequence and hash. `lineage` is the new one.
    """

    target: RestoreTarget
    links: tuple[StoredManifest, ...]
    position: LogPosition
    beginning: LogPosition
    lineage: str
    entry: Entry
    incarnation: int
    disk_bytes: int
    free_bytes: int

    @property
    def backup(self) -> Manifest:
        """The backup that is restored."""
        return self.links[-1].manifest

    @property
    def size_bytes(self) -> int:
        """The bytes of all pairs that are read."""
        return sum(link.manifest.size_bytes for link in self.links)

    @property
    def size_compressed(self) -> int:
        """The bytes of all objects that are read."""
        return sum(link.manifest.size_compressed for link in self.links)

    @property
    def membership(self) -> Membership:
        """The members of the new cluster."""
        return Membership.decode(bytes(self.entry.payload))

    @property
    def token(self) -> str:
        """Text that the other members can be restored with."""
        fields = [
            TOKEN_FORMAT,
            self.backup.lineage,
            self.backup.label,
            self.links[-1].sha256,
            list(self.beginning),
            self.entry.data,
        ]
        packed: bytes = msgpack.packb(fields)
        return base64.urlsafe_b64encode(packed + sha256(packed).digest()[:8]).decode()

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as a dict, for JSON."""
        return {
            "lineage": self.backup.lineage,
            "label": self.backup.label,
            "backups": [link.manifest.label for link in self.links],
            "objects": sum(len(link.manifest.runs) for link in self.links),
            "size_bytes": self.size_bytes,
            "size_compressed": self.size_compressed,
            "index": self.position.index,
            "sequence": self.position.last_sequence,
            "time_us": self.position.time_us,
            "digest": self.backup.digest,
            "data_dir": str(self.target.data_dir),
            "node_id": self.target.node_id,
            "members": sorted(self.membership.members),
            "new_lineage": self.lineage,
            "next_sequence": self.beginning.last_sequence + 1,
            "disk_bytes": self.disk_bytes,
            "free_bytes": self.free_bytes,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreHooks:
    """What a restore needs of its surroundings.

    `on_progress` gets the bytes of pairs that were read, and how many there are. `on_step` gets
    each step of the module's docstring once it is done.
    """

    on_progress: Callable[[int, int], None] = lambda done, total: None
    on_step: Callable[[int], None] = lambda step: None
    is_wanted: Callable[[], bool] = lambda: True
    pool: Callable[[str, int], Pool] = serial_pool


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreResult:
    """What was restored: the digest of all pairs as they are on the disk, and their number.

    `is_proven`: the digest was compared with one that the backup's node computed, of this state or,
    if there is none, of the full backup that it builds on.
    """

    digest: str
    keys: int
    is_proven: bool
    token: str


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
    last = links[-1].manifest
    if target.token:
        lineage_id, beginning, entry = _read_token(target, links[-1])
        incarnation = new_incarnation()
    else:
        lineage_id, incarnation = random(16).hex(), new_incarnation()
        sequence = _next_sequence(highest_sequence(repository, last))
        beginning = _beginning(last.position, lineage_id, sequence)
        entry = _first_entry(last, target, lineage_id, incarnation, beginning)
    size = sum(link.manifest.size_bytes for link in links)
    folder = _existing(target.data_dir)
    return RestorePlan(
        target=target,
        links=tuple(links),
        position=last.position,
        beginning=beginning,
        lineage=lineage_id,
        entry=entry,
        incarnation=incarnation,
        disk_bytes=int(STATE_FACTOR * size) + 2 * target.segment_bytes + SPARE_BYTES,
        free_bytes=shutil.disk_usage(folder).free,
    )


def run_restore(
    plan: RestorePlan, repository: Repository, hooks: RestoreHooks | None = None
) -> RestoreResult:
    """Carry out a plan: on return the data directory is there, durable and complete.

    StorageFull, StorageFailed: the disk. BackupDamaged: the backup is not what it should be.
    BackupCancelled. After any error there is no data directory.
    """
    hooks = hooks or RestoreHooks()
    data_dir = plan.target.data_dir.absolute()
    check_empty(data_dir)
    if plan.free_bytes < plan.disk_bytes:
        raise StorageFull(
            f"{data_dir}: a restore may need {plan.disk_bytes} bytes, {plan.free_bytes} are free"
        )
    data_dir.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _scratch_of(data_dir) as scratch:
        restoring = _Restoring(plan, repository, hooks, scratch)
        result = restoring.build()
        sync_folder(scratch)
        check_empty(data_dir)
        scratch.rename(data_dir)
        sync_folder(data_dir.parent)
    hooks.on_step(5)
    return result


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
    """Return the highest sequence that the repository's backups of any lineage contain."""
    shelf = Shelf(repository.destinations, repository.id, repository.keys)
    newest: dict[str, list[str]] = {}
    for destination in repository.destinations.values():
        for info in destination.list(""):
            try:
                found = names.parse_backup_object(info.name)
            except ValueError:
                continue
            if found.part == "manifest":
                newest.setdefault(found.lineage, []).append(found.label)
    highest = known.position.last_sequence
    for lineage, labels in newest.items():
        in_order = sorted(set(labels), key=lambda label: -names.parse_label(label).begin_index)
        for label in in_order:
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


def _beginning(position: LogPosition, lineage: str, sequence: int) -> LogPosition:
    covered = b"raftha/restore/1" + position.hash + bytes.fromhex(lineage)
    digest = sha256(covered + sequence.to_bytes(8, "little")).digest()[:HASH_BYTES]
    return position._replace(last_sequence=sequence, hash=digest)


def _first_entry(
    backup: Manifest,
    target: RestoreTarget,
    lineage: str,
    incarnation: int,
    beginning: LogPosition,
) -> Entry:
    try:
        before = Membership.decode(backup.membership)
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
    membership = Membership(dict(sorted(members.items())), before.removed, cluster_id, lineage)
    term = beginning.term + 1
    return make_entry(beginning, term, 0, EntryKind.MEMBERSHIP, membership.encode(), 0)


def _read_token(target: RestoreTarget, link: StoredManifest) -> tuple[str, LogPosition, Entry]:
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
    found = link.manifest
    if (lineage, label, digest) != (found.lineage, found.label, link.sha256):
        raise InvalidRequest(
            f"the token is of a restore of {label}, not of {found.label}",
            hint="restore all members from the same backup",
        )
    if position.index != found.position.index or not follows(entry, position.hash):
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


@contextmanager
def _scratch_of(data_dir: Path) -> Iterator[Path]:
    """Make an empty folder beside a data directory; it is gone at the end, unless renamed.

    Its lock keeps out another restore. A folder that was renamed meanwhile is another one.
    """
    scratch = data_dir.with_name(f".{data_dir.name}.restoring")
    scratch.mkdir(mode=0o700, exist_ok=True)
    handle = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            flock(handle, LOCK_EX | LOCK_NB)
        except OSError as error:
            raise ConfigError(f"another restore into {data_dir} is running") from error
        if not scratch.exists() or not os.path.samestat(os.fstat(handle), scratch.stat()):
            raise ConfigError(f"another restore into {data_dir} has just ended")
        for left in scratch.iterdir():
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    finally:
        os.close(handle)


@dataclass(slots=True)
class _Restoring:
    """One restore, in its scratch folder."""

    plan: RestorePlan
    repository: Repository
    hooks: RestoreHooks
    scratch: Path
    read_bytes: int = 0

    def build(self) -> RestoreResult:
        """Steps 1 to 5, but for the rename."""
        target = self.plan.target
        with ExitStack() as opened:
            # First, because a folder with a log and without an identity is a damaged one.
            data = DataDirectory(self.scratch, target.cluster_name, target.node_id)
            opened.callback(data.close)
            base = self._build_state()
            result = self._prove(base)
            self.hooks.on_step(3)
            self._begin_log()
            self.hooks.on_step(4)
            data.renew_incarnation(self.plan.incarnation)
            data.record_log()
            data.join(self.plan.membership.cluster_id, heals=False)
            self._write_record(result)
            return result

    def _build_state(self) -> str:
        """Steps 1 and 2; return the digest of the full backup's pairs."""
        plan = self.plan
        shelf = Shelf(self.repository.destinations, self.repository.id, self.repository.keys)
        base, meta = Hasher(), MetaParts()
        pool = self.hooks.pool("fetch", FETCHERS)
        builder = StoreBuilder(self.scratch / "state", plan.links[0].manifest.size_bytes)
        try:
            for link in plan.links:
                meta = MetaParts()
                pieces = self._watched(read_backup(shelf, link.manifest, meta.add, pool))
                if link.manifest.is_full:
                    # If the last link has a digest of its own, that is the one to compare.
                    builder.append(pieces if plan.backup.digest else _hashed(pieces, base))
                else:
                    builder.change(pieces)
            self.hooks.on_step(1)
            builder.finish(self._moved(meta.join()))
            self.hooks.on_step(2)
        finally:
            builder.close()
            pool.shutdown(cancel_futures=True)
        return base.finish().hex

    def _watched(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            if not self.hooks.is_wanted():
                raise BackupCancelled("the restore is no longer wanted")
            yield piece
            self.read_bytes += sum(8 + len(key) + len(value or b"") for key, value in piece)
            total = self.plan.size_bytes
            self.hooks.on_progress(min(self.read_bytes, total), total)

    def _moved(self, meta: bytes) -> bytes:
        name = names.manifest_name(self.plan.backup.lineage, self.plan.backup.label)
        try:
            if read_meta(meta).position != self.plan.position:
                raise ValueError("its meta is of another position")
            # With the new membership, or a snapshot of this state would be one of the old lineage.
            return move_meta(meta, self.plan.beginning, bytes(self.plan.entry.payload))
        except ValueError as error:
            raise BackupDamaged(str(error), object_name=name) from error

    def _prove(self, base: str) -> RestoreResult:
        """Step 3: hash what is on the disk."""
        store = CheckpointStore(self.scratch / "state", is_verified=True)
        try:
            digest = store.digest(is_wanted=self.hooks.is_wanted)
        finally:
            store.close()
        if digest is None:
            raise BackupCancelled("the restore is no longer wanted")
        full, last = self.plan.links[0].manifest, self.plan.backup
        expected = [(last, digest.hex)] if last.digest else [(full, base)]
        for manifest, found in expected:
            if manifest.digest and manifest.digest != found:
                raise BackupDamaged(
                    f"the state that it restores has digest {found}, and the node that took it "
                    f"computed {manifest.digest}",
                    object_name=names.manifest_name(manifest.lineage, manifest.label),
                )
        is_proven = any(manifest.digest for manifest, _ in expected)
        return RestoreResult(
            digest=digest.hex, keys=digest.keys, is_proven=is_proven, token=self.plan.token
        )

    def _begin_log(self) -> None:
        """Step 4."""
        plan, entry = self.plan, self.plan.entry
        wal = Wal.open(
            RealDisk(),
            str(self.scratch / "wal"),
            segment_bytes=plan.target.segment_bytes,
            salt=lambda: int.from_bytes(os.urandom(8), "little") or 1,
        )
        try:
            wal.reset(plan.beginning)
            vote = 0 if plan.target.token else plan.target.node_id
            wal.append(HardState(entry.term, vote, entry.index), (entry,))
        finally:
            wal.close()

    def _write_record(self, result: RestoreResult) -> None:
        path = self.scratch / RESTORED
        document = {
            "raftha_version": VERSION,
            **self.plan.as_dict(),
            "restored_digest": result.digest,
            "keys": result.keys,
        }
        path.touch(0o600)
        with path.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=2)
            file.flush()
            os.fsync(file.fileno())


def _hashed(pieces: Iterator[Piece], hasher: Hasher) -> Iterator[Piece]:
    for piece in pieces:
        hasher.add_encoded(encode_pairs(piece), len(piece))
        yield piece
