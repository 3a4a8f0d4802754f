"""`raftha restore`: make a node's data directory from a backup, without a cluster.

`plan` changes nothing and says what `run` would do. The state is that of the backup; what was
written after it is not in it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raftha.cli.asking import AsJson
from raftha.cli.backup import parse_time
from raftha.cli.backup_tables import fields_table, moment, size
from raftha.cli.console import errors_as_lines, print_table, printable
from raftha.cli.repository import KeyFile, Lineage, Places, Which, byte_bar, opened
from raftha.cli.settings import read_config
from raftha.errors import ConfigError, RafthaError, RepositoryError

if TYPE_CHECKING:
    from raftha.config import HaConfig
    from raftha.storage.backup.repository import Repository
    from raftha.storage.backup.restore import RestorePlan, RestoreResult, RestoreTarget

RESTORE_BYTES_PER_S = 150_000_000
"""A restore's rate, for the estimate in a plan: bytes before compression, and the digest."""

restore = typer.Typer(
    help="Make a node's data directory from a backup.",
    no_args_is_help=True,
    add_completion=False,
)

Config = Annotated[Path, typer.Option(help="The settings of the node to make, a TOML file.")]
DataDir = Annotated[
    Path | None, typer.Option(help="Its data directory, if not the one in the file.")
]
Before = Annotated[
    str, typer.Option(help="Instead: the last one that began by then, as 2026-11-27T12:00:00Z.")
]
Alone = Annotated[
    bool, typer.Option("--alone", help="The new cluster has no other member; add some later.")
]
Token = Annotated[
    str, typer.Option(help="What the first member's restore printed: this is another member.")
]


@restore.command()
def plan(
    backup: Which = "",
    *,
    config: Config,
    data_dir: DataDir = None,
    before: Before = "",
    lineage: Lineage = "",
    places: Places = None,
    key_file: KeyFile = None,
    alone: Alone = False,
    token: Token = "",
    as_json: AsJson = False,
) -> None:
    """Say what a restore would read and make; it changes nothing.

    Exit code 1 if it can't be done.
    """
    with errors_as_lines():
        settings = read_config(config, data_dir)
        with opened(places, None if places else config, key_file) as repository:
            found = _plan(repository, settings, backup, before, lineage, alone, token)
            _show_plan(found, as_json)
            _check_space(found)


@restore.command()
def run(
    backup: Which = "",
    *,
    config: Config,
    data_dir: DataDir = None,
    before: Before = "",
    lineage: Lineage = "",
    places: Places = None,
    key_file: KeyFile = None,
    alone: Alone = False,
    token: Token = "",
    as_json: AsJson = False,
) -> None:
    """Restore a backup into a node's data directory, which must not exist or be empty.

    raftha restore run --config node-1.toml

    This node is the new cluster's first voter. The other `members` of its file
    become voters by themselves: start them with empty data directories, or
    restore them too, with the token that this prints. The new cluster has a
    history of its own: nodes of the old one refuse it, and its sequence numbers
    begin above all that the old one has given.

    What is on the disk in the end is read again, and its digest compared with
    the one that the node computed which took the backup.
    """
    with errors_as_lines():
        settings = read_config(config, data_dir)
        with opened(places, None if places else config, key_file) as repository:
            found = _plan(repository, settings, backup, before, lineage, alone, token)
            _check_space(found)
            result = _run(repository, found, not as_json)
            _describe_fork(repository, found)
        _show_result(found, result, as_json)


def _plan(
    repository: Repository,
    settings: HaConfig,
    backup: str,
    before: str,
    lineage: str,
    alone: bool,
    token: str,
) -> RestorePlan:
    from raftha.storage.backup.restore import plan_restore
    from raftha.storage.backup.shelves import list_shelves

    if backup and before:
        raise ConfigError("a backup and --before exclude each other")
    at_us = int(parse_time("--before", before).timestamp() * 1_000_000) if before else None
    shelves = list_shelves(repository)
    for name, error in shelves.errors.items():
        typer.echo(printable(f"{name} is left out: {error}"), err=True)
    listed = shelves.find(backup, at_us=at_us, lineage=lineage)
    target = _target(settings, alone, token)
    return plan_restore(repository, listed.lineage, listed.label, target)


def _target(settings: HaConfig, alone: bool, token: str) -> RestoreTarget:
    from raftha.membership import Member
    from raftha.storage.backup.restore import RestoreTarget

    regions = settings.regions_by_member
    own = Member(settings.own_address, regions.get(settings.node_id, settings.regions[0]))
    others = {
        node_id: Member(address, regions[node_id])
        for node_id, address in settings.members.items()
        if node_id != settings.node_id
    }
    return RestoreTarget(
        data_dir=Path(settings.data_dir),
        cluster_name=settings.cluster_name,
        node_id=settings.node_id,
        own=own,
        segment_bytes=settings.wal_segment_bytes,
        others={} if alone or token else others,
        token=token,
    )


def _check_space(found: RestorePlan) -> None:
    if found.free_bytes < found.disk_bytes:
        raise RafthaError(
            f"a restore may need {size(found.disk_bytes)} of disk, {size(found.free_bytes)} are"
            f" free at {found.target.data_dir}"
        )


def _run(repository: Repository, found: RestorePlan, show: bool) -> RestoreResult:
    from raftha.storage.backup.pool import thread_pool
    from raftha.storage.backup.restore import RestoreHooks, run_restore

    with byte_bar(show) as bar:
        task = bar.add_task("restoring", total=found.size_bytes)
        hooks = RestoreHooks(
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            on_step=lambda step: bar.update(task, description=_STEPS.get(step, "restoring")),
            pool=thread_pool,
        )
        return run_restore(found, repository, hooks)


_STEPS = {2: "comparing the digest", 3: "beginning the log"}
"""What is done after each step of `storage/backup/restore.py`."""


def _describe_fork(repository: Repository, found: RestorePlan) -> None:
    """The data directory doesn't depend on it, and a repository may be readable only."""
    from raftha.storage.backup.shelves import describe_fork

    try:
        describe_fork(repository, found)
    except RepositoryError as error:
        typer.echo(
            printable(f"the repository doesn't know where the new history comes from: {error}"),
            err=True,
        )


def _show_plan(found: RestorePlan, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
        return
    chain = [link.manifest for link in found.links]
    shown: dict[str, Any] = {
        "backup": f"{found.backup.label}, {found.backup.mode}, of lineage {found.backup.lineage}",
        "state": f"{moment(found.position.time_us)}, sequence {found.position.last_sequence:,}",
    }
    shown |= {
        f"reads {number}": f"{each.label}, {each.mode}, {size(each.size_compressed)}"
        for number, each in enumerate(chain, 1)
    }
    seconds = found.size_bytes / RESTORE_BYTES_PER_S
    shown |= {
        "in all": f"{size(found.size_compressed)}, {size(found.size_bytes)} uncompressed,"
        f" about {max(seconds, 1):.0f} s",
        "disk": f"{size(found.disk_bytes)} at most, {size(found.free_bytes)} free",
        "makes": f"{found.target.data_dir}, node {found.target.node_id}"
        f" of members {', '.join(map(str, sorted(found.membership.members)))}",
        "digest": found.backup.digest or "that of the full backup is compared",
        "next write": f"sequence {found.beginning.last_sequence + 1:,}",
    }
    print_table(fields_table(shown))


def _show_result(found: RestorePlan, result: RestoreResult, as_json: bool) -> None:
    if as_json:
        shown = {
            **found.as_dict(),
            "restored_digest": result.digest,
            "keys": result.keys,
            "is_proven": result.is_proven,
            "token": result.token,
        }
        typer.echo(json.dumps(shown, indent=2))
        return
    proof = "equal to that of the node that took it" if result.is_proven else "NOT compared"
    typer.echo(printable(f"restored {found.backup.label} into {found.target.data_dir}"))
    typer.echo(f"{result.keys:,} keys; digest {result.digest}, {proof}")
    others = sorted(found.membership.members.keys() - {found.target.node_id})
    if others and not found.target.token:
        names = ", ".join(map(str, others))
        typer.echo(f"Start this node, and nodes {names} with empty data directories; or restore")
        typer.echo("them as well, each with:")
        typer.echo(f"  --token {result.token}")
