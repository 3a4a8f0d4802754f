"""Commands that read a repository of backups themselves, without a cluster.

Where it is: `--repository`, or the [backup] settings in the file of a node. So these work when the
cluster is gone, and on a machine that never had one.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)

from raftha.cli.asking import AsJson
from raftha.cli.console import errors_as_lines
from raftha.cli.settings import read_config
from raftha.errors import ConfigError, InvalidRequest, RafthaError

if TYPE_CHECKING:
    from raftha.storage.backup.crypto import OperatorKey
    from raftha.storage.backup.repository import Repository

SCAN_MAX = 1_000_000
KEY_BYTES = 32

Places = Annotated[
    list[str] | None,
    typer.Option("--repository", help="A folder or URL with the backups; repeat for more copies."),
]
NodeFile = Annotated[
    Path | None, typer.Option("--config", help="A node's settings: use those of its [backup].")
]
KeyFile = Annotated[
    Path | None, typer.Option(help="The key of encrypted backups. [encryption_key_file]")
]
Lineage = Annotated[
    str, typer.Option(help="The history to look in, where a repository has several.")
]
Which = Annotated[str, typer.Argument(help="Its id or label. [the newest]")]


@contextmanager
def opened(
    places: list[str] | None, config: Path | None, key_file: Path | None
) -> Iterator[Repository]:
    """Open the repository that the options name, and close it in the end."""
    from raftha.storage.backup.opening import open_places

    named, key = resolve_places(places, config, key_file)
    repository = open_places(named, key)
    try:
        yield repository
    finally:
        repository.close()


def resolve_places(
    places: list[str] | None, config: Path | None, key_file: Path | None
) -> tuple[dict[str, str], OperatorKey | None]:
    """The folders and URLs that the options name, by names, and the key."""
    from raftha.storage.backup.opening import read_operator_key

    if bool(places) == (config is not None):
        raise ConfigError("say where the backups are: with --repository, or with --config")
    if config is None:
        named = {
            f"repository-{i}" if i > 1 else "repository": place
            for i, place in enumerate(places or (), 1)
        }
        return named, read_operator_key(key_file or Path(), "")
    backup = read_config(config).backup
    if backup is None:
        raise ConfigError(f"{config} has no table [backup]")
    path, command = Path(backup.encryption_key_file or ""), backup.encryption_key_command
    key = read_operator_key(key_file or path, "" if key_file else command)
    return dict(backup.destinations), key


def progress_bar(show: bool) -> Progress:
    """A bar on stderr for long work, unless nobody sees it."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not show or not sys.stderr.isatty(),
        transient=True,
    )


def byte_bar(show: bool) -> Progress:
    """As `progress_bar`, for a number of bytes."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not show or not sys.stderr.isatty(),
        transient=True,
    )


# ------------------------------------------------------------------------------- get, scan


def get(
    key: Annotated[str, typer.Argument(help="The key, as text; with --hex as hex digits.")],
    backup: Which = "",
    *,
    places: Places = None,
    config: NodeFile = None,
    key_file: KeyFile = None,
    lineage: Lineage = "",
    is_hex: Annotated[bool, typer.Option("--hex", help="The key is given as hex digits.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read one key out of a backup, without restoring it; the value goes to stdout.

    raftha backup get user:17 --repository s3://bucket/prefix

    It reads a few blocks of the backup, not all of it. Exit code 1 if the key
    is not there. With --json, `value_base64` is the value, null if there is
    none.
    """
    from raftha.storage.backup.lookup import BackupReader
    from raftha.storage.backup.shelves import list_shelves

    with errors_as_lines(), opened(places, config, key_file) as repository:
        wanted = _bytes(key, is_hex)
        listed = list_shelves(repository).find(backup, lineage=lineage)
        value = BackupReader(repository, listed.lineage, listed.label).get(wanted)
        if as_json:
            encoded = None if value is None else base64.b64encode(value).decode()
            typer.echo(json.dumps({"backup": listed.label, "value_base64": encoded}))
        elif value is not None and sys.stdout.isatty():
            typer.echo(_shown(value))  # A terminal would obey what it must not.
        elif value is not None:
            sys.stdout.buffer.write(value)
            sys.stdout.buffer.flush()
        if value is None:
            raise RafthaError(f"{listed.label} has no such key")


def scan(
    backup: Which = "",
    *,
    places: Places = None,
    config: NodeFile = None,
    key_file: KeyFile = None,
    lineage: Lineage = "",
    start: Annotated[str, typer.Option(help="The first key. [the first there is]")] = "",
    end: Annotated[str, typer.Option(help="The key to end before. [none]")] = "",
    limit: Annotated[int, typer.Option(min=1, max=SCAN_MAX, help="Keys at most.")] = 1000,
    is_hex: Annotated[bool, typer.Option("--hex", help="Keys are given as hex digits.")] = False,
    as_json: AsJson = False,
) -> None:
    """List keys of a backup and their values, without restoring it.

    One line a key: the key, a tab, the value; bytes that a terminal would not
    print are escaped as in Python. With --json one object a line, in base64.
    """
    from itertools import islice

    from raftha.storage.backup.lookup import BackupReader
    from raftha.storage.backup.shelves import list_shelves

    with errors_as_lines(), opened(places, config, key_file) as repository:
        bounds = [_bytes(text, is_hex) if text else None for text in (start, end)]
        listed = list_shelves(repository).find(backup, lineage=lineage)
        pairs = BackupReader(repository, listed.lineage, listed.label).scan(*bounds)
        for key, value in islice(pairs, limit):
            if as_json:
                texts = [base64.b64encode(each).decode() for each in (key, value)]
                typer.echo(json.dumps({"key_base64": texts[0], "value_base64": texts[1]}))
            else:
                typer.echo(f"{_shown(key)}\t{_shown(value)}")


def _bytes(text: str, is_hex: bool) -> bytes:
    try:
        return bytes.fromhex(text) if is_hex else text.encode()
    except ValueError as error:
        raise InvalidRequest(f"not hex digits: {text!r:.80}") from error


def _shown(data: bytes) -> str:
    text = data.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


# ------------------------------------------------------------------------------- key

key = typer.Typer(
    help="Make the key of encrypted backups, or change it.",
    no_args_is_help=True,
    add_completion=False,
)


@key.command("new")
def new_key(
    file: Annotated[Path, typer.Argument(help="The file to write; it must not exist.")],
    as_json: AsJson = False,
) -> None:
    """Make a random key for `encryption_key_file`, which only its owner can read.

    Keep a copy elsewhere: without it, no encrypted backup can be restored.
    """
    with errors_as_lines():
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise ConfigError(f"{file} exists", hint="a key is never overwritten") from error
        with os.fdopen(descriptor, "wb") as out:
            out.write(os.urandom(KEY_BYTES).hex().encode() + b"\n")
            out.flush()
            os.fsync(out.fileno())
        _say({"file": str(file)}, f"wrote {file}; keep a copy of it elsewhere", as_json)


@key.command("change")
def change_key(
    new: Annotated[Path, typer.Argument(help="The file with the new key.")],
    places: Places = None,
    config: NodeFile = None,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Have the repository opened by a new key as well as by the old one.

    Then give all members the new file, start them again, and run `raftha backup
    key forget`. No backup is written again: the keys that encrypt them stay.
    """
    import time

    from raftha.storage.backup.crypto import load_operator_key

    with errors_as_lines(), opened(places, config, key_file) as repository:
        repository.change_operator_key(load_operator_key(new), time.time_ns() // 1000)
        text = "both keys open the repository now"
        _say({"repository": repository.id}, text, as_json)


@key.command("forget")
def forget_keys(
    places: Places = None,
    config: NodeFile = None,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Have the repository opened by the present key only."""
    with errors_as_lines(), opened(places, config, key_file) as repository:
        repository.refresh_keys()
        count = repository.forget_other_operator_keys()
        _say({"deleted": count}, f"older key files deleted: {count}", as_json)


@key.command("renew")
def renew_data_key(
    places: Places = None,
    config: NodeFile = None,
    key_file: KeyFile = None,
    as_json: AsJson = False,
) -> None:
    """Encrypt all later backups with another data key. Older ones keep theirs."""
    import time

    with errors_as_lines(), opened(places, config, key_file) as repository:
        made = repository.new_data_key(time.time_ns() // 1000)
        _say({"key_id": made.key_id}, f"later backups use data key {made.key_id}", as_json)


def _say(fields: dict[str, Any], text: str, as_json: bool) -> None:
    typer.echo(json.dumps(fields) if as_json else text)
