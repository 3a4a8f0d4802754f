"""`raftha recover` and `raftha drill`: the way back to a moment, and the proof that there is one.

Theory of operation. Both ask a node over its client port: the cluster decides. A recovery is shown
as a plan first, and asks before it changes anything. It goes on if this process ends, and if the
asked node is reopened at the end, the outcome is what the cluster's log says of it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import datetime
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from raftha.cli.access import TlsCa, TokenFile
from raftha.cli.asking import AsJson, Asked, Config, Connect, ask, node_to_ask
from raftha.cli.backup import ASK_S, parse_time
from raftha.cli.backup_tables import fields_table, size
from raftha.cli.console import errors_as_lines, print_table, printable
from raftha.cli.recovery_tables import exact, parse_points, points_table
from raftha.errors import ConfigError, Indeterminate, InvalidRequest, RafthaError

PLAN_S = 300.0
DRILL_S = 7 * 86_400.0
POLL_S = 0.3
OUTCOME_S = 60.0
"""How long the log is asked what has come of a recovery whose answer was lost."""
SEQUENCE_MAX = (1 << 63) - 1

ToTime = Annotated[
    str,
    typer.Option(help="The last moment that stays, with its offset: 2026-11-27T14:01:59Z."),
]
ToSequence = Annotated[
    int | None, typer.Option(min=0, max=SEQUENCE_MAX, help="The last command that stays.")
]
ToMark = Annotated[str, typer.Option(help="The moment that `raftha backup mark` gave this name.")]


class Target(NamedTuple):
    """What is asked for, as the server takes it."""

    kind: str
    value: str | int


# ------------------------------------------------------------------------------- recover


def recover(
    *,
    to_time: ToTime = "",
    to_sequence: ToSequence = None,
    to_mark: ToMark = "",
    undo: Annotated[
        bool, typer.Option("--undo", help="Back to the moment before the last recovery.")
    ] = False,
    abort: Annotated[
        bool, typer.Option("--abort", help="Give up the one that the members prepare.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it would do.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    freeze_now: Annotated[
        bool, typer.Option("--freeze-now", help="Refuse writes from now on, not only at the end.")
    ] = False,
    timeout: Annotated[
        int | None, typer.Option(min=1, max=604_800, help="Seconds for it. [restore_timeout_s]")
    ] = None,
    connect: Connect = None,
    config: Config = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Take the running cluster back to an earlier moment, on all members at once.

    raftha recover --to-time 2026-11-27T14:01:59Z --dry-run

    The members build the state of then beside their own, while clients go on;
    then all switch at one entry of the log. Writes wait for a few seconds at the
    end. What was written after the moment is undone, and --undo brings it back.
    Exit code 1 if it can't be done or was given up, and nothing has changed;
    2 if the outcome is not known.
    """
    with errors_as_lines():
        asked = node_to_ask(connect, config, token_file, tls_ca)
        target = _target(to_time, to_sequence, to_mark, undo, abort)
        if abort:
            ask(asked, ("RAFTHA", "RECOVER", "ABORT"), ASK_S)
            typer.echo("{}" if as_json else "given up; nothing has changed")
            return
        before = _told(asked)
        if undo:
            target = Target("SEQUENCE", _undone_sequence(before))
        plan = json.loads(ask(asked, ("RAFTHA", "RECOVER", "PLAN", *target), PLAN_S))
        if dry_run or not as_json:
            _show_plan(plan, before["sequence"], as_json)
        if dry_run:
            return
        if not yes:
            _confirm()
        result = _recover(asked, target, undo, freeze_now, timeout, before, show=not as_json)
        _show_result(result, as_json)
        if result["state"] != "restored":
            raise RafthaError(f"the recovery was given up: {result['error']}")


def _target(to_time: str, to_sequence: int | None, to_mark: str, undo: bool, abort: bool) -> Target:
    given = [bool(to_time), to_sequence is not None, bool(to_mark), undo, abort]
    if sum(given) != 1:
        raise ConfigError("give one of --to-time, --to-sequence, --to-mark, --undo and --abort")
    return Target("", "") if undo or abort else make_target(to_time, to_sequence, to_mark)


def make_target(to_time: str, to_sequence: int | None, to_mark: str) -> Target:
    """The moment that the options name; at most one of them is given."""
    if to_time:
        return Target("TIME", _microseconds(parse_time("--to-time", to_time)))
    return Target("SEQUENCE", to_sequence) if to_sequence is not None else Target("MARK", to_mark)


def _microseconds(moment: datetime) -> int:
    from raftha.api.recovery import microseconds

    return microseconds("--to-time", moment)


def _undone_sequence(told: Mapping[str, Any]) -> int:
    """The last command before the last recovery."""
    restored = [each for each in told["recoveries"] if each["state"] == "restored"]
    if not restored:
        raise InvalidRequest("there was no recovery that could be undone")
    sequence: int = restored[-1]["sequence"] - 1
    return sequence


def _confirm() -> None:
    if not sys.stdin.isatty():
        raise ConfigError("this takes the whole cluster back", hint="say --yes, or --dry-run first")
    typer.confirm("Take the whole cluster back to this moment?", abort=True, err=True)


def _recover(
    asked: Asked,
    target: Target,
    undo: bool,
    freeze_now: bool,
    timeout: int | None,
    before: Mapping[str, Any],
    show: bool,
) -> dict[str, Any]:
    """Have it done; return what the log says of it."""
    what: tuple[str | int, ...] = ("UNDO",) if undo else ("TO", *target)
    request = ("RAFTHA", "RECOVER", *what, "NOW" if freeze_now else "SWITCH", timeout or 0)
    last_id = max((each["id"] for each in before["recoveries"]), default=0)
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not (show and sys.stderr.isatty()),
        transient=True,
    )
    with ThreadPoolExecutor(1) as pool, bar:
        doing: Future[bytes] = pool.submit(ask, asked, request, (timeout or DRILL_S) + ASK_S)
        task = bar.add_task("planning", total=None)
        while not doing.done():
            wait([doing], POLL_S)
            if not bar.disable:
                bar.update(task, description=_stage(asked, last_id))
        try:
            found: dict[str, Any] = json.loads(doing.result())
        except Indeterminate:
            found = _outcome(asked, last_id)
    return found


def _stage(asked: Asked, last_id: int) -> str:
    """What the recovery that runs is doing."""
    try:
        told = _told(asked)
    except RafthaError:
        return "switching"
    running = [each for each in told["recoveries"] if each["id"] > last_id]
    if not running:
        return "planning"
    done, total = running[-1].get("done_bytes", 0), running[-1].get("total_bytes", 0)
    how_far = f", {100 * done // total} % here" if total else ""
    return f"the members build the state of then{how_far}"


def _outcome(asked: Asked, last_id: int) -> dict[str, Any]:
    """What the log says of the recovery whose answer was lost."""
    deadline = time.monotonic() + OUTCOME_S
    while True:
        try:
            later = [each for each in _told(asked)["recoveries"] if each["id"] > last_id]
            ended = [each for each in later if each["state"] != "prepared"]
            if ended:
                return dict(ended[0])
        except RafthaError:
            pass  # The node may be about to reopen.
        if time.monotonic() > deadline:
            raise Indeterminate(
                "no answer, and the log doesn't say yet what has come of the recovery",
                hint="`raftha backup points` shows it when it has ended",
            )
        time.sleep(POLL_S)


def _told(asked: Asked) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(ask(asked, ("RAFTHA", "PITR"), ASK_S))
    return told


def _show_plan(plan: Mapping[str, Any], sequence: int, as_json: bool) -> None:
    moment, following = plan["moment"], plan["following"]
    undone = max(sequence - moment["sequence"], 0)
    if as_json:
        typer.echo(json.dumps({**plan, "undone": undone}, indent=2))
        return
    then = f"sequence {moment['sequence']:,}, stamped {exact(moment['time_us'])}"
    after = "nothing yet"
    if following is not None:
        number = following["sequence"]
        what = f"up to sequence {number:,}" if number > moment["sequence"] else "without commands"
        after = f"an entry stamped {exact(following['time_us'])}, {what}"
    shown: dict[str, Any] = {
        "target": plan["target"],
        "last kept": then,
        "next": after,
        "undone": f"{undone:,} commands, as of now",
        "reads": f"{', '.join(plan['backups'])}, and {plan['segments']} segments of log",
        "in all": f"{size(plan['size_compressed'])} in {plan['objects']} objects,"
        f" {plan['commands']:,} commands, about {max(plan['seconds'], 1):.0f} s",
    }
    print_table(fields_table(shown))


def _show_result(result: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    elif result["state"] == "restored":
        typer.echo(
            f"the state is that of sequence {result['to_sequence']:,} again, stamped"
            f" {exact(result['time_us'])}: {result['undone']:,} commands undone"
            f" in {result['duration_ms'] / 1000:.1f} s"
        )
        typer.echo(f"digest {printable(result['digest'])}, the same on a majority of the members")
        typer.echo("`raftha recover --undo` takes this back")


# ------------------------------------------------------------------------------- drill


def drill(
    *,
    to_time: ToTime = "",
    to_sequence: ToSequence = None,
    to_mark: ToMark = "",
    connect: Connect = None,
    config: Config = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Prove that a moment can be restored: restore it, compare digests, throw it away.

    The asked node does so in a process of its own at low priority, by default for
    a random moment of the window. The cluster does this by itself, each week by
    default. Exit code 1 if the moment can't be restored, or differs.
    """
    with errors_as_lines():
        asked = node_to_ask(connect, config, token_file, tls_ca)
        given = sum([bool(to_time), to_sequence is not None, bool(to_mark)])
        if given > 1:
            raise ConfigError("give at most one of --to-time, --to-sequence and --to-mark")
        target = make_target(to_time, to_sequence, to_mark) if given else ()
        report = json.loads(ask(asked, ("RAFTHA", "RECOVER", "DRILL", *target), DRILL_S))
        if as_json:
            typer.echo(json.dumps(report, indent=2))
        else:
            print_table(fields_table(drill_fields(report)))
        if not report["is_ok"]:
            raise RafthaError("the drill failed", hint=report["error"])


def drill_fields(report: Mapping[str, Any]) -> dict[str, Any]:
    """A drill's report, in words."""
    checked = ", ".join(report["checked"]) or "none: no full backup lies on the way"
    took = f"{report['restore_s']:.1f} s restore, {report['replay_s']:.1f} s replay"
    return {
        "restored": report["target"] or "nothing",
        "and on to": f"sequence {report['sequence']:,}, stamped {exact(report['time_us'])}",
        "from": f"{', '.join(report['backups'])}, and {report['segments']} segments of log",
        "contents": f"{report['keys']:,} keys, digest {report['digest'] or '-'}",
        "compared": f"digests of {checked}",
        "read": f"{size(report['size_compressed'])}, {report['commands']:,} commands",
        "took": f"{took}, {report['digest_s']:.1f} s digest; {report['seconds']:.1f} s in all",
        "rpo then": f"{report['rpo_ms'] / 1000:.1f} s",
        "result": "ok" if report["is_ok"] else f"FAILED: {report['error']}",
    }


# ------------------------------------------------------------------------------- moments

MarkName = Annotated[str, typer.Argument(help="Up to 100 characters; a name that isn't taken.")]


def mark(
    name: MarkName,
    connect: Connect = None,
    config: Config = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Give this moment a name, for `raftha recover --to-mark`: before a deploy, for example."""
    with errors_as_lines():
        asked = node_to_ask(connect, config, token_file, tls_ca)
        _show_point(json.loads(ask(asked, ("RAFTHA", "RECOVER", "MARK", name), ASK_S)), as_json)


def checkpoint(
    connect: Connect = None,
    *,
    timeout: Annotated[int, typer.Option(min=1, max=600, help="Seconds to wait for it.")] = 60,
    config: Config = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """Have the members' states compared now, and note a recovery point.

    It waits until the log up to the point is in a destination. Exit code 1 if no
    majority has the same state; 2 if it takes too long.
    """
    with errors_as_lines():
        asked = node_to_ask(connect, config, token_file, tls_ca)
        request = ("RAFTHA", "RECOVER", "CHECKPOINT", timeout)
        point = json.loads(ask(asked, request, timeout + ASK_S))
        _show_point(point, as_json)
        if not point["is_consistent"]:
            raise RafthaError("no majority was found to have the same state", hint="try again")


def points(
    connect: Connect = None,
    config: Config = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    as_json: AsJson = False,
) -> None:
    """List the moments that the cluster knows: backups, recovery points, marks, recoveries."""
    with errors_as_lines():
        told = _told(node_to_ask(connect, config, token_file, tls_ca))
        if as_json:
            typer.echo(json.dumps(told, indent=2))
        else:
            print_table(points_table(parse_points(told)))


def _show_point(point: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(point, indent=2))
        return
    compared = f"; {point['agreed']} of {point['voters']} voters have the same state"
    typer.echo(
        f"sequence {point['sequence']:,}, stamped {exact(point['time_us'])}"
        f"{compared if point['voters'] else ''}"
    )
