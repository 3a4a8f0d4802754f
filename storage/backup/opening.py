"""Opens the repository that a configuration, or a command line, names."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from raftha.config.backup import BackupConfig
from raftha.storage.backup.crypto import OperatorKey, load_operator_key, run_key_command
from raftha.storage.backup.destinations import open_destination
from raftha.storage.backup.repository import Repository, open_repository


def open_configured(config: BackupConfig, *, may_create: bool, now_us: int) -> Repository:
    """Open the repository of a configuration; raises as `open_repository`, and ConfigError.

    Folders are relative to the working directory; in a TOML file they were made relative to it.
    """
    key = read_operator_key(Path(config.encryption_key_file or ""), config.encryption_key_command)
    return _open(config.destinations, key, config.encryption, may_create=may_create, now_us=now_us)


def open_places(places: Mapping[str, str], key: OperatorKey | None) -> Repository:
    """Open a repository that exists, encrypted or not, in these folders or URLs, by their names."""
    return _open(places, key, None, may_create=False, now_us=0)


def read_operator_key(file: Path, command: str) -> OperatorKey | None:
    """The operator's key from a file, or from a command; None if there is neither."""
    if command:
        return run_key_command(command)
    return None if file == Path() else load_operator_key(file)


def _open(
    places: Mapping[str, str],
    key: OperatorKey | None,
    is_encrypted: bool | None,
    *,
    may_create: bool,
    now_us: int,
) -> Repository:
    with ExitStack() as opened:
        destinations = []
        for name, place in places.items():
            destination = open_destination(name, place, base=Path())
            opened.callback(destination.close)
            destinations.append(destination)
        repository = open_repository(
            destinations,
            operator=key,
            is_encrypted=is_encrypted,
            may_create=may_create,
            now_us=now_us,
        )
        opened.pop_all()  # The repository closes them from now on.
    return repository
