"""`raftha backup`: take, list, verify and keep backups of a cluster.

Theory of operation. `run`, `info`, `explain`, `expire`, `pin` and `unpin` ask a node over its
client port: the cluster decides. `list`, `show`, `verify` and `check` do so too, or read the
repository themselves if they are told where it is; `get`, `scan` and `key` always do
(`raftha.cli.repository`).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import Progress

from raftha.cli import repository
from raftha.cli.access import TlsCa, TokenFile
from raftha.cli.asking import AsJson, Asked, Config, Connect, ask, node_to_ask
from raftha.cli.backup_tables import (
    Backup,
    Decision,
    backup_fields,
    backups_table,
    decisions_table,
    fields_table,
    moment,
    size,
)
from raftha.cli.console import errors_as_lines, print_table, printable
from raftha.cli.recovery_tables import archive_line, drill_line, window_line
from raftha.cli.repository import KeyFile, Lineage, Places, byte_bar, progress_bar
from raftha.errors import ConfigError, InvalidRequest, RafthaError

if TYPE_CHECKING:
    from raftha.types import BackupVerification, DestinationCheck

ASK_S = 15.0
VERIFY_S = 86_400.0
POLL_S = 0.3
MODES = ("full", "incremental", "differential")

backup = typer.Typer(
    help="Take, list, verify and keep backups of a cluster; read keys out of one.",
    no_args_is_help=True,
    add_completion=False,
)
backup.command("get")(repository.get)
backup.command("scan")(repository.scan)
backup.add_typer(repository.key, name="key")

BackupId = Annotated[str, typer.Argument(help="Its id or its label.")]


# ------------------------------------------------------------------------------- run


@backup.command()
def run(
    mode: Annotated[
        str, typer.Option(help=f"One of {', '.join(MODES)}. [what the leader's settings say]")
    ] = "",
    *,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Return once it has begun, not when it is verified.")
    ] = False,
    timeout: Annotated[
        int, typer.Option(min=1, max=604_800, help="Seconds to wait for it.")
    ] = 86_400,
    connect: Connect = None,
    config: Config = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Take a backup now, and wait until it is verified.

    The leader chooses the member that takes it. If the try fails, it is made
    again. Exit code 1 if no destination has it in the end, or if one runs
    already; 2 if the outcome is not known.
    """
    with errors_as_lines():
        if mode and mode not in MODES:
            raise ConfigError(f"--mode must be one of {', '.join(MODES)}")
        asked = node_to_ask(connect, config, token_file, tls_ca)
        wanted = ("RAFTHA", "BACKUP", "RUN", mode or "-")
        if no_wait:
            backup_id = ask(asked, wanted, ASK_S)
        else:
            backup_id = _wait(asked, (*wanted, "WAIT", timeout), timeout + ASK_S, not as_json)
        found = _find(_backups(asked)["backups"], str(backup_id))
        if as_json:
            typer.echo(json.dumps(found, indent=2))
            return
        what = "has begun" if no_wait else _outcome(found)
        typer.echo(printable(f"backup {found['id']}, {found['label']}: {what}"))


def _outcome(found: Backup) -> str:
    stored = f"{size(found['size_compressed'])} stored in {found['duration_ms'] / 1000:.1f} s"
    missing = {name: why for name, why in found["destinations"].items() if why != "ok"}
    why = f" ({found['reason']})" if found["reason"] else ""
    told = f"{found['mode']}{why}, {found['keys']:,} keys, {stored}"
    return told + "".join(f"; NOT in {name}: {reason}" for name, reason in missing.items())


def _wait(asked: Asked, request: tuple[str | int, ...], timeout_s: float, show: bool) -> int:
    """Have a backup taken; show how far it is meanwhile. Returns its id."""
    with ThreadPoolExecutor(1) as pool, byte_bar(show) as bar:
        taking: Future[int] = pool.submit(ask, asked, request, timeout_s)
        task = bar.add_task("preparing", total=None)
        while not taking.done():
            wait([taking], POLL_S)
            _advance(asked, bar, task)
        return taking.result()


def _advance(asked: Asked, bar: Progress, task: Any) -> None:
    if bar.disable:
        return
    try:
        running = [b for b in _backups(asked)["backups"] if not _has_ended(b)]
    except RafthaError:
        return  # The waiting call tells.
    for each in running:
        total = each["total_bytes"] or None
        text = printable(each["state"]).replace("_", " ")
        bar.update(task, description=text, completed=each["done_bytes"], total=total)


def _has_ended(found: Backup) -> bool:
    return found["state"] in ("completed", "failed")


# ------------------------------------------------------------------------------- what there is


@backup.command()
def info(
    connect: Connect = None,
    config: Config = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Show which moments can be restored, all backups, where they are, and why each is kept.

    Exit code 1 if there is none that can be restored.
    """
    with errors_as_lines():
        asked = node_to_ask(connect, config, token_file, tls_ca)
        told = _backups(asked)
        whole = [each for each in told["backups"] if each["state"] == "completed"]
        told |= _restorable(asked)
        if as_json:
            typer.echo(json.dumps(told, indent=2))
        else:
            _show_info(told, whole)
        if not whole:
            raise RafthaError("there is no backup", hint="`raftha backup run` takes one")


def _restorable(asked: Asked) -> dict[str, Any]:
    """Which moments can be restored, and how far the archive is; why not, if that isn't known."""
    try:
        told = json.loads(ask(asked, ("RAFTHA", "PITR"), ASK_S))
        known = {"archive": told["archive"], "drill": told["drill"]}
        window = json.loads(ask(asked, ("RAFTHA", "RECOVER", "WINDOW"), ASK_S))
    except RafthaError as error:
        return {"archive": None, "drill": None, "window": None, "window_error": str(error)}
    return {**known, "window": window, "window_error": ""}


def _show_info(told: dict[str, Any], whole: Sequence[Backup]) -> None:
    due = {True: "due now", False: "not due", None: "no settings here"}[told["is_due"]]
    last = f"the newest backup is of {moment(whole[-1]['time_us'])}" if whole else "nothing"
    window = told["window"]
    reach = window_line(window) if window else f"{last}; {told['window_error']}"
    typer.echo(f"lineage   {printable(told['lineage'] or '-')}")
    typer.echo(f"state     {printable(told['state'])}; the next backup is {due}")
    typer.echo(f"restore   {printable(reach)}")
    typer.echo(f"archive   {printable(archive_line(told['archive']))}")
    typer.echo(f"drill     {printable(drill_line(told['drill']))}")
    print_table(backups_table(told["backups"], told["decisions"]))


@backup.command("list")
def list_backups(
    connect: Connect = None,
    *,
    config: Config = None,
    places: Places = None,
    key_file: KeyFile = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """List the backups: those that a cluster knows, or with --repository all that are there."""
    with errors_as_lines():
        if places:
            found, errors = _shelved(places, key_file, show=not as_json)
            told: dict[str, Any] = {"backups": found, "decisions": [], "errors": errors}
        else:
            told = _backups(node_to_ask(connect, config, token_file, tls_ca))
        if as_json:
            typer.echo(json.dumps(told["backups"], indent=2))
        else:
            print_table(backups_table(told["backups"], told["decisions"]))
        for name, error in told.get("errors", {}).items():
            typer.echo(printable(f"{name}: {error}"), err=True)


@backup.command()
def show(
    backup_id: BackupId,
    connect: Connect = None,
    *,
    config: Config = None,
    places: Places = None,
    key_file: KeyFile = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Show all that is known of one backup."""
    with errors_as_lines():
        if places:
            found, decisions = _find(_shelved(places, key_file)[0], backup_id), []
        else:
            told = _backups(node_to_ask(connect, config, token_file, tls_ca))
            found = _find(told["backups"], backup_id)
            decisions = [d for d in told["decisions"] if d["backup_id"] == found["id"]]
        if as_json:
            typer.echo(json.dumps({**found, "decisions": decisions}, indent=2))
        else:
            print_table(fields_table(backup_fields(found, decisions)))


@backup.command()
def verify(
    backup_id: BackupId,
    connect: Connect = None,
    *,
    level: Annotated[
        int,
        typer.Option(
            min=0, max=3, help="0 lists it, 1 reads it back, 2 decodes it, 3 compares the digest."
        ),
    ] = 3,
    config: Config = None,
    places: Places = None,
    key_file: KeyFile = None,
    lineage: Lineage = "",
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Verify a backup in each destination; with --repository without a cluster.

    Level 3 does all that a restore does but writing. Exit code 1 if anything is
    wrong.
    """
    with errors_as_lines():
        if places:
            rows = [
                dataclasses.asdict(each)
                for each in _verified(places, key_file, backup_id, level, lineage)
            ]
        else:
            asked = node_to_ask(connect, config, token_file, tls_ca)
            wanted = _find(_backups(asked)["backups"], backup_id)["id"]
            rows = json.loads(ask(asked, ("RAFTHA", "BACKUP", "VERIFY", wanted, level), VERIFY_S))
        _report(
            [(row["destination"], row["findings"], _looked_at(row)) for row in rows], rows, as_json
        )
        if any(row["findings"] for row in rows) or not rows:
            raise RafthaError(f"backup {backup_id} is not sound in all destinations")


def _looked_at(row: Any) -> str:
    digest = f", digest {row['digest']}" if row["digest"] else ""
    return f"sound: {row['objects']:,} objects, {size(row['size_bytes'])}{digest}"


def _report(
    lines: Sequence[tuple[str, Sequence[str], str]], rows: Sequence[Any], as_json: bool
) -> None:
    """A line for each destination, and one for each finding."""
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    for name, findings, good in lines:
        for finding in findings or (good,):
            typer.echo(printable(f"{name}: {finding}"))


def _verified(
    places: list[str], key_file: Path | None, backup_id: str, level: int, lineage: str
) -> tuple[BackupVerification, ...]:
    from raftha.storage.backup.inspection import verify_backup
    from raftha.storage.backup.shelves import list_shelves

    with repository.opened(places, None, key_file) as found:
        shelves = list_shelves(found)
        listed = shelves.find(backup_id, lineage=lineage)
        where = shelves.places[listed.lineage, listed.label]
        return verify_backup(found, listed.lineage, listed.label, level, where)


def _shelved(
    places: list[str], key_file: Path | None, show: bool = False
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The backups of a repository, and the destinations that could not be listed."""
    from raftha.storage.backup.shelves import list_shelves, read_results

    with repository.opened(places, None, key_file) as found, progress_bar(show) as bar:
        shelves = list_shelves(found)
        task = bar.add_task("reading manifests", total=len(shelves.backups))
        results = read_results(found, shelves, lambda: bar.advance(task))
        return [dataclasses.asdict(each) for each in results], dict(shelves.errors)


# ------------------------------------------------------------------------------- what stays


@backup.command()
def explain(
    connect: Connect = None,
    config: Config = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Say why each backup is in each destination, and which would be deleted now."""
    with errors_as_lines():
        told = _backups(node_to_ask(connect, config, token_file, tls_ca))
        if told["is_due"] is None:
            raise InvalidRequest("the asked node has no settings for backups", hint="ask another")
        _show_decisions(told["decisions"], as_json)


@backup.command()
def expire(
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    connect: Connect = None,
    config: Config = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Delete the backups that no rule keeps; the cluster does so by itself after each backup.

    Nothing goes from a destination that has no newer backup.
    """
    with errors_as_lines():
        asked = node_to_ask(connect, config, token_file, tls_ca)
        if dry_run:
            decisions = _backups(asked)["decisions"]
        else:
            decisions = json.loads(ask(asked, ("RAFTHA", "BACKUP", "EXPIRE"), ASK_S))
        _show_decisions([each for each in decisions if each["fate"] != "kept"], as_json)


def _show_decisions(decisions: Sequence[Decision], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(decisions, indent=2))
    elif decisions:
        print_table(decisions_table(decisions))
    else:
        typer.echo("nothing")


@backup.command()
def pin(
    backup_id: BackupId,
    *,
    name: Annotated[str, typer.Option(help="What the pin is called.")] = "manual",
    until: Annotated[
        str, typer.Option(help="Until when, as in 2027-01-01T00:00:00+00:00. [for ever]")
    ] = "",
    connect: Connect = None,
    config: Config = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Keep a backup, and what it builds on, whatever the rules say."""
    with errors_as_lines():
        asked = node_to_ask(connect, config, token_file, tls_ca)
        until_us = int(parse_time("--until", until).timestamp() * 1_000_000) if until else 0
        found = _find(_backups(asked)["backups"], backup_id)
        ask(asked, ("RAFTHA", "BACKUP", "PIN", found["id"], name, until_us), ASK_S)
        _say_pins(asked, found["id"], as_json)


@backup.command()
def unpin(
    backup_id: BackupId,
    *,
    name: Annotated[str, typer.Option(help="Only this pin. [all]")] = "",
    connect: Connect = None,
    config: Config = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Take away a backup's pins."""
    with errors_as_lines():
        asked = node_to_ask(connect, config, token_file, tls_ca)
        found = _find(_backups(asked)["backups"], backup_id)
        names = (name,) if name else ()
        ask(asked, ("RAFTHA", "BACKUP", "UNPIN", found["id"], *names), ASK_S)
        _say_pins(asked, found["id"], as_json)


def _say_pins(asked: Asked, backup_id: int, as_json: bool) -> None:
    found = _find(_backups(asked)["backups"], str(backup_id))
    if as_json:
        typer.echo(json.dumps({"id": backup_id, "pins": found["pins"]}))
    else:
        pins = ", ".join(found["pins"]) or "none"
        typer.echo(printable(f"pins of backup {backup_id}: {pins}"))


# ------------------------------------------------------------------------------- check


@backup.command()
def check(
    connect: Connect = None,
    *,
    config: Config = None,
    places: Places = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Try what each destination really does, with objects that are removed again.

    It creates one, twice with different bytes, reads it and a part of it, lists
    and deletes it. With --repository this process tries, else the asked node.
    Exit code 1 if a destination can't be used.
    """
    with errors_as_lines():
        if places:
            rows = [dataclasses.asdict(each) for each in _checked(places)]
        else:
            asked = node_to_ask(connect, config, token_file, tls_ca)
            rows = json.loads(ask(asked, ("RAFTHA", "BACKUP", "CHECK"), VERIFY_S))
        _report([(row["destination"], row["findings"], "does all") for row in rows], rows, as_json)
        bad = [row["destination"] for row in rows if not row["is_usable"]]
        if bad:
            raise RafthaError(f"backups don't work in {', '.join(bad)}")


def _checked(places: list[str]) -> tuple[DestinationCheck, ...]:
    from raftha.storage.backup.inspection import check_places

    return check_places(repository.resolve_places(places, None, None)[0])


# ------------------------------------------------------------------------------- shared


def parse_time(option: str, text: str) -> datetime:
    """A time with its offset from UTC: without one it would mean another moment elsewhere."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"{option}: not a time: {text!r:.80}") from error
    if found.tzinfo is None:
        raise ConfigError(
            f"{option}: {text} has no offset from UTC", hint=f"as in {text}Z, or {text}+01:00"
        )
    return found


def _backups(asked: Asked) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(ask(asked, ("RAFTHA", "BACKUPS"), ASK_S))
    return told


def _find(backups: Sequence[Backup], wanted: str) -> dict[str, Any]:
    for each in backups:
        if wanted in (str(each["id"]), each["label"]):
            return dict(each)
    raise InvalidRequest(f"there is no backup {wanted}", hint="`raftha backup list` shows them")
