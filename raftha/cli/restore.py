"""`raftha restore`: make a node's data directory from a repository, without a cluster.

`plan` changes nothing and says what `run` would do. The state is that of a backup, or that of any
moment for which the repository has the log.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from raftha.cli.asking import AsJson
from raftha.cli.backup import parse_time
from raftha.cli.backup_tables import fields_table, size
from raftha.cli.console import errors_as_lines, print_table, printable
from raftha.cli.repository import KeyFile, Lineage, Places, Which, byte_bar, opened
from raftha.cli.settings import read_config
from raftha.errors import ConfigError, RafthaError, RepositoryError

if TYPE_CHECKING:
    from raftha.config import HaConfig
    from raftha.storage.backup.recovery import RecoveryPlan
    from raftha.storage.backup.repository import Repository
    from raftha.storage.backup.restore import RestoreResult
    from raftha.storage.backup.restore_plan import RestorePlan, RestoreTarget
    from raftha.storage.state.machine import StateMachine

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


ToTime = Annotated[
    str, typer.Option(help="All that was written by then, as 2026-11-27T12:00:00.5Z.")
]
ToSequence = Annotated[
    int | None, typer.Option(min=1, help="All writes up to the one with this sequence.")
]
ToMark = Annotated[str, typer.Option(help="All that was written when this mark was set.")]
ToLatest = Annotated[
    bool, typer.Option("--to-latest", help="All that is in the repository, the log included.")
]
MachineSpec = Annotated[
    str, typer.Option("--machine", help="The state machine for the log, as module:Class.")
]
Skips = Annotated[
    list[str] | None,
    typer.Option("--skip-entry", help="What the cluster was made to skip, as INDEX:HASH."),
]


@dataclass(frozen=True)
class _Wanted:
    """Which state is wanted: a backup's, or that of a moment."""

    backup: str
    before: str
    time: str
    sequence: int | None
    mark: str
    is_latest: bool
    lineage: str

    def __post_init__(self) -> None:
        given = [self.backup, self.before, self.time, self.sequence, self.mark, self.is_latest]
        if sum(map(bool, given)) > 1:
            raise ConfigError(
                "give one of: a backup, --before, --to-time, --to-sequence, --to-mark, --to-latest"
            )

    @property
    def is_moment(self) -> bool:
        return bool(self.time or self.sequence or self.mark or self.is_latest)


@restore.command()
def plan(
    backup: Which = "",
    *,
    config: Config,
    data_dir: DataDir = None,
    to_time: ToTime = "",
    to_sequence: ToSequence = None,
    to_mark: ToMark = "",
    to_latest: ToLatest = False,
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
        wanted = _Wanted(backup, before, to_time, to_sequence, to_mark, to_latest, lineage)
        settings = read_config(config, data_dir)
        with opened(places, None if places else config, key_file) as repository:
            found = _plan(repository, settings, wanted, alone, token)
            _show_plan(found, as_json)
            _check_space(found)


@restore.command()
def run(
    backup: Which = "",
    *,
    config: Config,
    data_dir: DataDir = None,
    to_time: ToTime = "",
    to_sequence: ToSequence = None,
    to_mark: ToMark = "",
    to_latest: ToLatest = False,
    machine: MachineSpec = "",
    skip: Skips = None,
    before: Before = "",
    lineage: Lineage = "",
    places: Places = None,
    key_file: KeyFile = None,
    alone: Alone = False,
    token: Token = "",
    as_json: AsJson = False,
) -> None:
    """Restore into a node's data directory, which must not exist or be empty.

    raftha restore run --config node-1.toml --to-time 2026-11-27T14:01:59Z

    Without a moment or a backup's name, the newest backup is restored as it
    is. For a moment, the log in the repository is applied to the backup before
    it; if the log has commands of a state machine, name it with --machine.

    This node is the new cluster's first voter. The other `members` of its file
    become voters by themselves: start them with empty data directories, or
    restore them too, with the token that this prints. The new cluster has a
    history of its own: nodes of the old one refuse it, and its sequence numbers
    begin above all that the old one has given.

    What is on the disk in the end is read again for its digest, which is
    compared with the one that the node computed which took the backup.
    """
    with errors_as_lines():
        wanted = _Wanted(backup, before, to_time, to_sequence, to_mark, to_latest, lineage)
        settings = read_config(config, data_dir)
        skips = parse_skips(skip or ())
        with opened(places, None if places else config, key_file) as repository:
            found = _plan(repository, settings, wanted, alone, token)
            _check_space(found)
            result = _run(repository, found, not as_json, _machine(machine, found), skips)
            _describe_fork(repository, found)
        _show_result(found, result, as_json)


def _plan(
    repository: Repository, settings: HaConfig, wanted: _Wanted, alone: bool, token: str
) -> RestorePlan:
    from raftha.storage.backup.planner import Planner
    from raftha.storage.backup.restore_plan import plan_recovered, plan_restore
    from raftha.storage.backup.timeline import read_timeline

    target = _target(settings, alone, token)
    if wanted.is_moment:
        return plan_recovered(repository, _plan_moment(repository, wanted), target)
    at_us = parse_time_us("--before", wanted.before) if wanted.before else None
    timeline = read_timeline(repository)
    _say_left_out(timeline.errors)
    planner = Planner(repository, timeline)
    listed = planner.find(wanted.backup, at_us=at_us, lineage=wanted.lineage)
    return plan_restore(repository, listed.lineage, listed.label, target)


def _plan_moment(repository: Repository, wanted: _Wanted) -> RecoveryPlan:
    from raftha.storage.backup.drill import last_report, rates_of
    from raftha.storage.backup.marks import find_mark
    from raftha.storage.backup.planner import plan_recovery
    from raftha.storage.backup.recovery import Target
    from raftha.storage.backup.timeline import read_timeline

    timeline = read_timeline(repository)
    _say_left_out(timeline.errors)
    target, lineage = Target(sequence=wanted.sequence), wanted.lineage
    if wanted.time:
        target = Target(time_us=parse_time_us("--to-time", wanted.time))
    elif wanted.mark:
        lineage, sequence = find_mark(repository, wanted.mark, lineage, timeline=timeline)
        target = Target(sequence=sequence)
    found = plan_recovery(repository, target, lineage=lineage, timeline=timeline)
    # What the last drill took says more than what others took elsewhere.
    return replace(found, rates=rates_of(last_report(repository, found.lineage)))


def _say_left_out(errors: Mapping[str, str]) -> None:
    for name, error in errors.items():
        typer.echo(printable(f"{name} is left out: {error}"), err=True)


def parse_time_us(option: str, text: str) -> int:
    """A time with its offset from UTC, in microseconds since 1970, exactly."""
    since = parse_time(option, text) - datetime(1970, 1, 1, tzinfo=UTC)
    return since // timedelta(microseconds=1)


def parse_skips(texts: Iterable[str]) -> dict[int, bytes]:
    """The entries to skip, hashes by index."""
    found: dict[int, bytes] = {}
    for text in texts:
        index, _, digest = text.partition(":")
        if not (index.isdecimal() and re.fullmatch("[0-9a-fA-F]{32}", digest)):
            raise ConfigError(f"--skip-entry: not INDEX:HASH: {text!r:.80}")
        found[int(index)] = bytes.fromhex(digest)
    return found


def _machine(spec: str, found: RestorePlan) -> StateMachine | None:
    """The state machine that the log needs: the named one, or the reference server's own."""
    from raftha.runtime.machines import load_machine
    from raftha.server.machine import RedisMachine

    if spec:
        return load_machine(spec)
    server = RedisMachine()
    taken = found.backup
    is_server = taken.machine == RedisMachine.__qualname__
    return server if is_server and set(taken.commands) <= server.commands.keys() else None


def _target(settings: HaConfig, alone: bool, token: str) -> RestoreTarget:
    from raftha.membership import Member
    from raftha.storage.backup.restore_plan import RestoreTarget

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


def _run(
    repository: Repository,
    found: RestorePlan,
    show: bool,
    machine: StateMachine | None,
    skips: Mapping[int, bytes],
) -> RestoreResult:
    from raftha.storage.backup.pool import thread_pool
    from raftha.storage.backup.replay import ReplayHooks
    from raftha.storage.backup.restore import run_restore

    with byte_bar(show) as bar:
        task = bar.add_task("restoring", total=found.size_bytes)
        hooks = ReplayHooks(
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
            on_step=lambda step: bar.update(task, description=_STEPS.get(step, "restoring")),
            pool=thread_pool,
            skips=skips,
        )
        return run_restore(found, repository, hooks, machine)


_STEPS = {1: "applying the log", 2: "reading it again", 3: "beginning the log"}
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
    from raftha.storage.backup.recovery import shown_time

    if as_json:
        typer.echo(json.dumps(found.as_dict(), indent=2))
        return
    chain = [link.manifest for link in found.recovery.links]
    recovery, position = found.recovery, found.position
    shown: dict[str, Any] = {
        "backup": f"{found.backup.label}, {found.backup.mode}, of lineage {found.backup.lineage}",
        "state": f"{shown_time(position.time_us)}, sequence {position.last_sequence:,}",
    }
    if recovery.following is not None:
        following = recovery.following
        shown["left out"] = (
            f"{shown_time(following.time_us)} is the next entry, up to"
            f" sequence {following.sequence:,}"
        )
    shown |= {
        f"reads {number}": f"{each.label}, {each.mode}, {size(each.size_compressed)}"
        for number, each in enumerate(chain, 1)
    }
    if recovery.needs_replay:
        shown["replays"] = (
            f"{recovery.commands:,} commands, of {len(recovery.stretches)} segments,"
            f" {size(recovery.log_bytes)}"
        )
    for source in recovery.sources:
        shown[f"entry {source.restore.index}"] = (
            f"went back to sequence {source.restore.to_sequence:,}, which is built too"
        )
    proof = "that of the full backup is compared"
    shown |= {
        "in all": f"{size(found.size_compressed)}, {size(found.size_bytes)} uncompressed,"
        f" about {max(recovery.seconds, 1):.0f} s",
        "disk": f"{size(found.disk_bytes)} at most, {size(found.free_bytes)} free",
        "makes": f"{found.target.data_dir}, node {found.target.node_id}"
        f" of members {', '.join(map(str, sorted(found.membership.members)))}",
        "digest": proof if recovery.needs_replay else found.backup.digest or proof,
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
    what = found.backup.label
    if found.recovery.needs_replay:
        what = f"{what} and the log up to sequence {found.position.last_sequence:,}"
        proof = "that of the full backup was compared" if result.is_proven else "NOT compared"
    typer.echo(printable(f"restored {what} into {found.target.data_dir}"))
    typer.echo(f"{result.keys:,} keys; digest {result.digest}, {proof}")
    others = sorted(found.membership.members.keys() - {found.target.node_id})
    if others and not found.target.token:
        names = ", ".join(map(str, others))
        typer.echo(f"Start this node, and nodes {names} with empty data directories; or restore")
        typer.echo("them as well, each with:")
        typer.echo(f"  --token {result.token}")
