"""A repository: the same objects in one or several destinations, under one id and one set of keys.

    repository.json             format, id, encryption ("none" or "aes-256-gcm"), created_us
    keys/<key id>-<version>.json   see `raftha.storage.backup.crypto`
    lineages/<lineage>.json     see `LineageRecord`

Theory of operation. The first node that opens empty places makes the repository; its id is random
and stands in every destination. All of them must answer then, since one that doesn't may hold the
repository already. Creation goes through the destinations in their configured order, so that of two
nodes at once one wins in the first of them, and the other takes over what it finds.
A destination with another id belongs to another repository, and is refused. One that can't be
reached is left out (`failed`), and `retry_failed` takes it in later: each destination fails alone.

Whether a repository is encrypted is decided when it is made, and never changes. Opening it needs
the operator's key then, even to write. Key files are copied to destinations that lack them, since a
destination without its keys is worthless.

Changing the operator's key needs all destinations: else one would be left that only the old key
opens.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from raftha.errors import (
    BackupDamaged,
    ConfigError,
    KeyMissing,
    ObjectMissing,
    RepositoryConflict,
    RepositoryError,
    RepositoryUnavailable,
)
from raftha.storage.backup import names
from raftha.storage.backup.crypto import (
    ID_BYTES,
    NO_KEYS,
    DataKey,
    KeyRing,
    OperatorKey,
    WrappedKey,
    wrap,
)
from raftha.storage.backup.destination import Destination, create_or_compare
from raftha.storage.backup.repository_records import (
    LineageRecord,
    RepositoryRecord,
    checked,
    get_document,
)

KEY_FILES_MAX = 200
"""How many key files are read, so that hostile ones cost a bounded time."""
_KEY_HINT = "set encryption_key_file to the key that the repository was made with"

Random = Callable[[int], bytes]


class Repository:
    """An open repository. Reading is safe from several threads; changes of keys are not."""

    def __init__(
        self,
        record: RepositoryRecord,
        operator: OperatorKey | None,
        random: Random,
        *,
        may_create: bool,
    ) -> None:
        """Used by `open_repository`."""
        self.id = record.repository_id
        self.is_encrypted = record.is_encrypted
        self.keys: KeyRing = NO_KEYS
        self.destinations: dict[str, Destination] = {}
        """Those that take part, by their configured names."""
        self.failed: dict[str, RepositoryError] = {}
        """Those that don't, and why."""
        self._record = record
        self._operator = operator
        self._random = random
        self._may_create = may_create
        self._left_out: dict[str, Destination] = {}
        self._wrapped: dict[str, WrappedKey] = {}

    @property
    def key(self) -> DataKey | None:
        """The key for new objects; None without encryption."""
        return self.keys.current

    def close(self) -> None:
        """Close all destinations."""
        for destination in (*self.destinations.values(), *self._left_out.values()):
            destination.close()

    def retry_failed(self) -> None:
        """Take in destinations that could not be reached; the rest stays in `failed`."""
        for destination in list(self._left_out.values()):
            self.admit(destination)

    def retry_one(self, name: str) -> None:
        """Take in this destination if it could not be reached; else why not stays in `failed`."""
        destination = self._left_out.get(name)
        if destination is not None:
            self.admit(destination)

    def refresh_keys(self) -> None:
        """Read the key files again: another node may have made a data key."""
        if self.is_encrypted:
            for destination in self.destinations.values():
                self._wrapped |= _read_keys(destination, self.id)
            self.keys = self._open_keys()

    def new_data_key(self, now_us: int) -> DataKey:
        """Make a data key for all later objects; durable in all destinations that take part."""
        operator = self._need_operator()
        self.refresh_keys()
        generation = max((key.generation for key in self.keys), default=0) + 1
        key = DataKey.new(generation, self._random)
        self._store([wrap(key, operator, self.id, 1, now_us, self._random)])
        return key

    def change_operator_key(self, successor: OperatorKey, now_us: int) -> None:
        """Wrap all data keys under `successor` as well; both keys open the repository then.

        RepositoryUnavailable unless all destinations take part; KeyMissing if a data key is locked.
        Can be repeated. `forget_other_operator_keys` ends the old key's time.
        """
        self._need_all()
        if self.keys.locked:
            raise KeyMissing("the present operator's key doesn't open it", min(self.keys.locked))
        versions = self._versions()
        self._store(
            [
                wrap(key, successor, self.id, versions[key.key_id] + 1, now_us, self._random)
                for key in self.keys
            ]
        )
        self._operator = successor

    def forget_other_operator_keys(self) -> int:
        """Delete all key files but the newest of each data key, which the present key opens.

        Returns how many were deleted. KeyMissing if the present key doesn't open all of them.
        """
        operator = self._need_all()
        versions = self._versions()
        newest = {
            name: wrapped
            for name, wrapped in self._wrapped.items()
            if wrapped.version == versions[wrapped.key_id]
        }
        opened = KeyRing.open(operator, newest.values())
        if opened.locked:
            raise KeyMissing("the present operator's key doesn't open it", min(opened.locked))
        older = self._wrapped.keys() - newest.keys()
        for name in older:
            for destination in self.destinations.values():
                destination.delete(name)
            del self._wrapped[name]
        return len(older)

    def write_lineage(self, record: LineageRecord) -> None:
        """Describe a lineage in all destinations that take part."""
        for destination in self.destinations.values():
            create_or_compare(destination, names.lineage_name(record.lineage), record.encode())

    def read_lineages(self) -> dict[str, LineageRecord]:
        """Return the descriptions of all lineages in the destinations that take part.

        One that can't be reached is passed over. BackupDamaged if a description is damaged wherever
        it lies.
        """
        found: dict[str, LineageRecord] = {}
        damaged: dict[str, BackupDamaged] = {}
        for destination in self.destinations.values():
            with suppress(RepositoryUnavailable):
                for lineage in _listed_lineages(destination):
                    if lineage not in found:
                        try:
                            found[lineage] = _read_lineage(destination, lineage)
                        except BackupDamaged as error:
                            damaged[lineage] = error
        for lineage in damaged.keys() - found.keys():
            raise damaged[lineage]
        return found

    def admit(self, destination: Destination) -> None:
        """Take a destination in, or note in `failed` why not. RepositoryConflict as at opening.

        Another thread may take in the same one meanwhile.
        """
        name = destination.name
        if name not in self.destinations:
            self._left_out[name] = destination
        try:
            self._identify(destination)
            self._share_keys(destination)
        except (RepositoryUnavailable, ObjectMissing, BackupDamaged) as error:
            if name not in self.destinations:
                self.failed[name] = error
            return
        self.destinations[name] = destination
        self.failed.pop(name, None)
        self._left_out.pop(name, None)

    def _identify(self, destination: Destination) -> None:
        name = names.repository_name()
        try:
            found = read_record(destination)
        except ObjectMissing:
            if not self._may_create:
                raise
            create_or_compare(destination, name, self._record.encode())
            return
        if found != self._record:
            raise _another(destination, found, self._record)

    def _share_keys(self, destination: Destination) -> None:
        if not self.is_encrypted:
            return
        here = _read_keys(destination, self.id)
        if self._may_create:
            for name, wrapped in self._wrapped.items():
                if name not in here:
                    create_or_compare(destination, name, wrapped.encode())
            for name, wrapped in here.items():
                if name not in self._wrapped:
                    for other in self.destinations.values():
                        create_or_compare(other, name, wrapped.encode())
        self._wrapped |= here
        self.keys = self._open_keys()

    def _open_keys(self) -> KeyRing:
        assert self._operator is not None, "an encrypted repository is opened with a key"
        return KeyRing.open(self._operator, self._wrapped.values())

    def _store(self, wrapped: Iterable[WrappedKey]) -> None:
        """Write key files to all destinations before the first of them is used."""
        by_name = {names.key_name(key.key_id, key.version): key for key in wrapped}
        for destination in self.destinations.values():
            for name, key in by_name.items():
                create_or_compare(destination, name, key.encode())
        self._wrapped |= by_name
        self.keys = self._open_keys()

    def _need_operator(self) -> OperatorKey:
        if self._operator is None or not self.is_encrypted:
            raise ConfigError("the repository is not encrypted: it has no keys")
        return self._operator

    def _need_all(self) -> OperatorKey:
        operator = self._need_operator()
        for error in self.failed.values():
            raise RepositoryUnavailable(
                f"the operator's key changes in all destinations or in none: {error}",
                destination=error.destination,
            )
        self.refresh_keys()
        return operator

    def _versions(self) -> dict[str, int]:
        """The newest version of each data key."""
        versions: dict[str, int] = {}
        for wrapped in self._wrapped.values():
            versions[wrapped.key_id] = max(wrapped.version, versions.get(wrapped.key_id, 0))
        return versions


def open_repository(
    destinations: Sequence[Destination],
    *,
    operator: OperatorKey | None = None,
    is_encrypted: bool | None = None,
    may_create: bool,
    now_us: int,
    random: Random = os.urandom,
) -> Repository:
    """Open the repository in these destinations, in the order of the configuration.

    With `may_create` it is made if there is none, and copied to destinations that lack it.
    `is_encrypted` is what the configuration wants; None wants encryption if there is an `operator`,
    since a bucket's owner could change what repository.json says of it.

    RepositoryConflict if the destinations hold different repositories; RepositoryUnavailable if
    none can be reached; ObjectMissing if there is none and it may not be made; KeyMissing if it is
    encrypted and `operator` doesn't open it; ConfigError if it is encrypted and should not be, or
    the other way round; RepositoryError if its format is of a later version.
    """
    wanted = operator is not None if is_encrypted is None else is_encrypted
    record = _find_record(destinations)
    if record is None:
        if not may_create:
            raise ObjectMissing(
                "no destination holds a repository", object_name=names.repository_name()
            )
        if wanted and operator is None:
            raise KeyMissing("an encrypted repository needs the operator's key", hint=_KEY_HINT)
        record = _make_record(destinations[0], wanted, now_us, random)
    _check_encryption(record, operator, is_encrypted, wanted=wanted)
    repository = Repository(record, operator, random, may_create=may_create)
    for destination in destinations:
        repository.admit(destination)
    if not repository.destinations:
        raise next(iter(repository.failed.values()))
    if record.is_encrypted and repository.key is None:
        _check_keys(repository.keys, may_create=may_create)
        repository.new_data_key(now_us)
    return repository


def read_record(destination: Destination) -> RepositoryRecord:
    """Return what a destination says it is; ObjectMissing if it holds no repository."""
    data = get_document(destination, names.repository_name())
    return RepositoryRecord.decode(data, destination.name)


def _find_record(destinations: Sequence[Destination]) -> RepositoryRecord | None:
    """What the destinations say which repository they hold; None if none holds one."""
    found: RepositoryRecord | None = None
    unavailable: RepositoryUnavailable | None = None
    for destination in destinations:
        try:
            record = read_record(destination)
        except ObjectMissing:
            continue
        except RepositoryUnavailable as error:
            unavailable = unavailable or error
            continue
        if found is not None and record != found:
            raise _another(destination, record, found)
        found = record
    if found is None and unavailable is not None:
        raise unavailable  # It may hold the repository, and a new one would conflict with that.
    return found


def _make_record(
    first: Destination, is_encrypted: bool, now_us: int, random: Random
) -> RepositoryRecord:
    record = RepositoryRecord(
        repository_id=random(ID_BYTES).hex(), is_encrypted=is_encrypted, created_us=now_us
    )
    with suppress(RepositoryConflict):  # Another node was first.
        create_or_compare(first, names.repository_name(), record.encode())
    return read_record(first)


def _check_encryption(
    record: RepositoryRecord,
    operator: OperatorKey | None,
    is_encrypted: bool | None,
    *,
    wanted: bool,
) -> None:
    if record.is_encrypted and operator is None and is_encrypted is not False:
        raise KeyMissing("the repository is encrypted", hint=_KEY_HINT)
    if record.is_encrypted != wanted:
        raise ConfigError(
            "the backup repository is encrypted, and one without encryption is wanted"
            if record.is_encrypted
            else "the backup repository is not encrypted, and an encrypted one is wanted",
            hint="that is decided when it is made: choose another place for a new one",
        )


def _check_keys(keys: KeyRing, *, may_create: bool) -> None:
    """KeyMissing unless an encrypted repository that has no open data key may be given one."""
    if keys.locked:
        raise KeyMissing(
            "the operator's key opens none of the repository's data keys",
            min(keys.locked),
            hint=_KEY_HINT,
        )
    if not may_create:
        raise KeyMissing("the repository is encrypted, and none of its data keys is there")


def _another(
    destination: Destination, found: RepositoryRecord, expected: RepositoryRecord
) -> RepositoryConflict:
    return RepositoryConflict(
        f"it holds repository {found.repository_id}, another one than {expected.repository_id}",
        destination=destination.name,
        object_name=names.repository_name(),
        hint="all destinations of a cluster hold one repository: give this one an empty place",
    )


def _read_keys(destination: Destination, repository: str) -> dict[str, WrappedKey]:
    """Read a destination's key files, by their names. BackupDamaged if one is none."""
    found: dict[str, WrappedKey] = {}
    for listed in destination.list(names.keys_folder()):
        try:
            key_id, version = names.parse_key_name(listed.name)
        except ValueError:
            continue  # Not ours.
        if len(found) >= KEY_FILES_MAX:
            raise BackupDamaged(
                f"more than {KEY_FILES_MAX} key files", destination=destination.name
            )
        try:
            data = get_document(destination, listed.name)
        except ObjectMissing:
            continue  # Deleted just now: an older version.
        with checked(destination.name, listed.name):
            wrapped = WrappedKey.decode(bytes(data))
            if (wrapped.repository, wrapped.key_id, wrapped.version) != (
                repository,
                key_id,
                version,
            ):
                raise ValueError("it belongs to another place")
        found[listed.name] = wrapped
    return found


def _listed_lineages(destination: Destination) -> list[str]:
    lineages: list[str] = []
    for listed in destination.list(names.lineages_folder()):
        with suppress(ValueError):  # Not ours.
            lineages.append(names.parse_lineage_name(listed.name))
    return lineages


def _read_lineage(destination: Destination, lineage: str) -> LineageRecord:
    name = names.lineage_name(lineage)
    return LineageRecord.decode(get_document(destination, name), destination.name, name)
