"""`raftha events`: the events of a cluster, as its nodes recorded them.

Theory of operation. Each node numbers its events and keeps the latest. For each node, a thread
requests the events that it hasn't seen yet, and the node holds the request while there are none.
All threads fill one queue, from which the main thread prints lines. The list of members is
refreshed every `LOOK_AGAIN_S`, so nodes that join or come back are followed too.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from raftha.cli.access import TlsCa, TokenFile, resolve_targets
from raftha.cli.console import errors_as_lines, printable
from raftha.client.cluster_view import collect_statuses
from raftha.errors import RafthaError

if TYPE_CHECKING:
    from raftha.client.call import Access

WAIT_MS = 2_000
CALL_TIMEOUT_S = 10.0
LOOK_AGAIN_S = 2.0

_STAMPS = ("kind", "number", "time_us", "reporter")
_RED = (
    "storage_failed", "storage_damaged", "storage_full", "quorum_lost", "health_check_failed",
    "backup_failed", "backup_missing", "verification_failed", "repository_conflict",
)  # fmt: skip
_GREEN = (
    "failover_completed",
    "quorum_restored",
    "health_recovered",
    "storage_has_space",
    "backup_completed",
)

Event = dict[str, Any]


def events(
    addresses: Annotated[
        list[str] | None, typer.Argument(help="Nodes to ask, host:port of their clients' side.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Ask the node that this file configures.")
    ] = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue until Ctrl-C.")] = False,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only events of this kind; repeat for more.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, one event a line.")] = False,
) -> None:
    """Show the recent events of all nodes of a cluster; one reachable node finds the others.

    A node keeps its last 1,000 events, in memory.
    """
    with errors_as_lines():
        asked, access = resolve_targets(addresses or [], config, token_file, tls_ca)
        show = Printer(kind or [], as_json)
        if follow:
            _follow(asked, access, show)
            return
        found, errors = [], []
        for address in _members(asked, access):
            try:
                found += _ask(address, access, "", 0, 0)["events"]
            except RafthaError as error:
                errors.append(error)
        for event in sorted(found, key=lambda e: (e["time_us"], e["reporter"], e["number"])):
            show(event)
        if errors and not found:
            raise errors[0]


class Printer:
    """Prints events of the requested kinds, one a line."""

    def __init__(self, kinds: Sequence[str], as_json: bool) -> None:
        self._kinds = set(kinds)
        self._as_json = as_json
        self._console = Console(soft_wrap=True, highlight=False)

    def __call__(self, event: Event) -> None:
        if self._kinds and event["kind"] not in self._kinds:
            return
        if self._as_json:
            typer.echo(json.dumps(event))
            return
        clock = datetime.fromtimestamp(event["time_us"] / 1e6, UTC).isoformat(" ", "milliseconds")
        details = " ".join(f"{k}={_brief(v)}" for k, v in event.items() if k not in _STAMPS)
        name, reporter = printable(event["kind"]), printable(event["reporter"])
        color = "red" if event["kind"] in _RED else "green" if event["kind"] in _GREEN else "bold"
        kind = f"[{color}]{escape(name):<24}[/]"
        details = escape(printable(details))
        self._console.print(f"{clock[:23]}  node {escape(reporter)}  {kind} {details}")


def _brief(value: Any) -> Any:
    """Shorten a value for display: a float has one decimal place."""
    return f"{value:.1f}" if isinstance(value, float) else value


def _members(asked: Iterable[str], access: Access) -> list[str]:
    """The client addresses of all members; at least those of the command line."""
    known = [n["address"] for n in collect_statuses(list(asked), access) if n["status"]]
    return known or list(asked)


def _ask(address: str, access: Access, journal: str, number: int, wait_ms: int) -> dict[str, Any]:
    from raftha.client.call import call

    request = ("RAFTHA", "EVENTS", journal, number, wait_ms)
    reply: dict[str, Any] = json.loads(call(address, request, CALL_TIMEOUT_S, access))
    return reply


def _follow(asked: Sequence[str], access: Access, show: Printer) -> None:
    arrived: queue.SimpleQueue[Event] = queue.SimpleQueue()
    followed: set[str] = set()
    look_at = 0.0
    try:
        while True:
            if time.monotonic() >= look_at:
                for address in _members([*asked, *followed], access):
                    if address not in followed:
                        followed.add(address)
                        each = (address, access, arrived)
                        threading.Thread(target=_follow_one, args=each, daemon=True).start()
                look_at = time.monotonic() + LOOK_AGAIN_S
            try:
                show(arrived.get(timeout=LOOK_AGAIN_S))
            except queue.Empty:
                continue
    except KeyboardInterrupt:
        return


def _follow_one(address: str, access: Access, arrived: queue.SimpleQueue[Event]) -> None:
    """Put the events of one node into the queue as they arrive."""
    journal, number = "", 0
    pause = threading.Event()
    while True:
        try:
            reply = _ask(address, access, journal, number, WAIT_MS)
        except (RafthaError, ValueError, KeyError):
            pause.wait(LOOK_AGAIN_S / 4)
            continue
        journal = reply["journal"]
        for event in reply["events"]:
            arrived.put(event)
            number = event["number"]
