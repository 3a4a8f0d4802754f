"""Opens the repository that a configuration, or a command line, names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from raftha.config.backup import BackupConfig
from raftha.storage.backup.counting import CountingDestination, OnRequest
from raftha.storage.backup.crypto import OperatorKey, load_operator_key, run_key_command
from raftha.storage.backup.destination import Destination
from raftha.storage.backup.destinations import open_destination
from raftha.storage.backup.repository import Repository, open_repository


def open_configured(
    config: BackupConfig,
    *,
    may_create: bool,
    now_us: int,
    on_request: OnRequest | None = None,
    retries: int | None = None,
) -> Repository:
    """Open the repository of a configuration; raises as `open_repository`, and ConfigError.

    Folders are relative to the working directory; those of a TOML file were made relative to it.
    `on_request` hears of each request to a destination, for metrics. `retries` is as in
    `open_destination`.
    """
    key = read_operator_key(Path(config.encryption_key_file or ""), config.encryption_key_command)
    with _opened(config.destinations, on_request, retries) as (destinations, closing):
        repository = open_repository(
            destinations,
            operator=key,
            is_encrypted=config.encryption,
            may_create=may_create,
            now_us=now_us,
        )
        closing.pop_all()
    return repository


def open_places(places: Mapping[str, str], key: OperatorKey | None) -> Repository:
    """Open a repository that exists, encrypted or not, in these folders or URLs, by their names."""
    with _opened(places, None) as (destinations, closing):
        repository = open_repository(destinations, operator=key, may_create=False, now_us=0)
        closing.pop_all()
    return repository


def read_operator_key(file: Path, command: str) -> OperatorKey | None:
    """The operator's key from a file, or from a command; None if there is neither."""
    if command:
        return run_key_command(command)
    return None if file == Path() else load_operator_key(file)


@contextmanager
def _opened(
    places: Mapping[str, str], on_request: OnRequest | None, retries: int | None = None
) -> Iterator[tuple[list[Destination], ExitStack]]:
    """Open destinations; close them again unless a repository has taken them over."""
    with ExitStack() as closing:
        destinations: list[Destination] = []
        for name, place in places.items():
            destination = open_destination(name, place, base=Path(), retries=retries)
            closing.callback(destination.close)
            if on_request is not None:
                destination = CountingDestination(destination, on_request)
            destinations.append(destination)
        yield destinations, closing
