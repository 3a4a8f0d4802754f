"""`raftha status`: every node of a cluster at a glance, once or as it changes.

`raftha.client.cluster_view` asks the nodes; this module draws the answers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console, Group, JustifyMethod
from rich.live import Live
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from raftha.cli.access import TlsCa, TokenFile, resolve_targets
from raftha.cli.backup_tables import moment
from raftha.cli.console import console, errors_as_lines, printable
from raftha.client.cluster_view import (
    Nodes,
    collect_statuses,
    find_leader,
    find_learners,
    find_removed,
    poll_statuses,
    rows_by_leader,
)
from raftha.errors import RafthaError

if TYPE_CHECKING:
    from raftha.client.call import Access

LAG_BLOCKS = 8
LAG_RED_MS = 5_000
CLOCK_SHOWN_MS = 1_000

NUMBERS = ("term", "leader", "commit", "applied", "sequence")
COLUMNS = ("node", "role", "state", "region", *NUMBERS, "lag", "version", "address")
EXPENDABLE = ("sequence", "commit", "leader", "term", "applied", "region")
"""Columns to drop, in this order, where space is short; the rest shows which nodes are well."""
WIDTH_MAX = 10_000


def status(
    addresses: Annotated[
        list[str] | None, typer.Argument(help="Nodes to ask, host:port of their clients' side.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Ask the node that this file configures.")
    ] = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    watch: Annotated[bool, typer.Option("--watch", help="Continue until Ctrl-C.")] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Seconds between updates with --watch.")
    ] = 1.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON; with --watch, one document a line.")
    ] = False,
) -> None:
    """Show every node of a cluster; one node that answers finds the others.

    Exit code 1 if no node leads.
    """
    with errors_as_lines():
        asked, access = resolve_targets(addresses or [], config, token_file, tls_ca)
        if watch:
            _watch(asked, access, interval, as_json)
            return
        nodes = collect_statuses(asked, access)
        leader = find_leader(nodes)
        if as_json:
            typer.echo(json.dumps({"leader_id": leader, "nodes": nodes}, indent=2))
        else:
            out = console()
            out.print(status_table(nodes, out))
            typer.echo(_footnote(nodes), nl=False)
        if leader is None:
            raise RafthaError(
                _no_leader(nodes), hint="a majority of the members must run and reach each other"
            )


def _watch(asked: Sequence[str], access: Access, interval_s: float, as_json: bool) -> None:
    """Show the statuses repeatedly, also while no node answers."""
    seen = poll_statuses(asked, access, interval_s)
    try:
        if as_json:
            for nodes in seen:
                typer.echo(json.dumps({"leader_id": find_leader(nodes), "nodes": nodes}))
        else:
            with Live(console=console(), auto_refresh=False) as live:
                for nodes in seen:
                    live.update(_watched(nodes, live.console), refresh=True)
    except KeyboardInterrupt:
        return


def _watched(nodes: Nodes, out: Console) -> Group:
    leader = find_leader(nodes)
    clock = time.strftime("%H:%M:%S")
    headline = f"{clock}  " + (f"node {leader} leads" if leader is not None else _no_leader(nodes))
    style = "bold" if leader is not None else "bold red"
    return Group(Text(headline, style=style), status_table(nodes, out), Text(_footnote(nodes)))


def _footnote(nodes: Nodes) -> str:
    failures = [
        f"node {printable(node['node_id'])} failed: {printable(node['status']['failure'])}\n"
        for node in nodes
        if node["status"] is not None and node["status"]["failure"]
    ]
    failures += [
        f"node {printable(node['node_id'])}: {printable(mismatch)}\n"
        for node in nodes
        if node["status"] is not None and (mismatch := node["status"].get("log_mismatch"))
    ]
    failures += [
        f"node {printable(node['node_id'])} sees two processes of node {printable(cloned)}:"
        " stop the copy\n"
        for node in nodes
        if node["status"] is not None
        for cloned in node["status"].get("cloned", ())
    ]
    removed = find_removed(nodes)
    gone = f"removed for good: {', '.join(map(str, removed))}\n" if removed else ""
    reached = [node["status"] for node in nodes if node["status"] is not None]
    latest: Mapping[str, Any] = max(reached, key=lambda s: s.get("compared_index", 0), default={})
    members = ", ".join(map(str, latest.get("diverged", ())))
    differ = f"states differ as of entry {latest['compared_index']}: {members}\n" if members else ""
    clocks = [
        f"the clock of node {printable(row['node_id'])} is {abs(offset_ms) / 1000:,.1f} s"
        f" {'ahead' if offset_ms > 0 else 'behind'}\n"
        for row in rows_by_leader(nodes).values()
        if abs(offset_ms := row.get("clock_offset_ms", 0)) >= CLOCK_SHOWN_MS
    ]
    news = "".join(failures) + "".join(clocks) + differ + gone
    return news + backup_line(nodes) + _versions(nodes)


def backup_line(nodes: Nodes) -> str:
    """The newest backup, by the node that has seen most of the log; "" without backups."""
    statuses = [node["status"] for node in nodes if node["status"] is not None]
    latest: Mapping[str, Any] = max(
        statuses, key=lambda status: status["applied_index"], default={}
    )
    state, last = latest.get("backup_state", "idle"), latest.get("last_backup")
    if last is None and state == "idle":
        return ""
    when = "none can be restored" if last is None else moment(last["time_us"])
    line = f"newest backup: {when} ({printable(state)})\n"
    if latest.get("rpo_ms") is not None:
        seconds, sequence = latest["rpo_ms"] / 1000, latest["pitr_sequence"] or 0
        line += (
            f"archived: up to sequence {sequence:,}; {seconds:.1f} s would be lost with all nodes\n"
        )
    return line


def _versions(nodes: Nodes) -> str:
    """What the cluster uses, by the node that has seen most of the log, and what holds it back."""
    statuses = [node["status"] for node in nodes if node["status"] is not None]
    if not statuses:
        return ""
    used = max(statuses, key=lambda status: status["applied_index"])
    if not used.get("protocol_version"):
        return ""
    protocol, machine = printable(used["protocol_version"]), printable(used["machine_version"])
    line = f"in use: protocol {protocol}, state machine version {machine}\n"
    waits_for = sorted({i for status in statuses for i in status.get("upgrade_waits_for", ())})
    if waits_for:
        line += f"an upgrade waits for node {', '.join(map(printable, waits_for))}\n"
    return line


def _no_leader(nodes: Nodes) -> str:
    is_reached = any(node["status"] is not None for node in nodes)
    return "no node leads" if is_reached else "no node answers"


def _lag(lag_ms: int) -> str:
    """A lag with a bar: one block for each power of ten of milliseconds."""
    if lag_ms <= 0:
        return "0"
    bar = "\N{FULL BLOCK}" * min(len(str(lag_ms)), LAG_BLOCKS)
    color = "yellow" if lag_ms < LAG_RED_MS else "red"
    text = f"{lag_ms} ms" if lag_ms < 1000 else f"{lag_ms / 1000:,.1f} s"
    return f"[{color}]{bar}[/] {text}"


def _role(node: Mapping[str, Any], learners: Mapping[int, str], removed: Sequence[int]) -> str:
    state = node["status"]
    if state is None:
        return "[red]not reached[/]"
    if state["failure"]:
        return f"[red]{escape(printable(state['role']))}[/]"
    if node["node_id"] in removed:
        return "[red]removed[/]"
    if node["node_id"] in learners:
        return f"[yellow]{learners[node['node_id']]}[/]"
    role = escape(printable(state["role"]))
    return f"[green]{role}[/]" if state["is_primary"] else role


def status_table(nodes: Nodes, out: Console) -> Table:
    """A row for each node, without the columns that don't fit into the width of `out`."""
    cells = [_cells(node, nodes) for node in nodes]
    names = [name for name in COLUMNS if any(name in row for row in cells)]
    for unneeded in ("", *EXPENDABLE):
        names = [name for name in names if name != unneeded]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in names:
            justify: JustifyMethod = "right" if name in NUMBERS else "left"
            is_whole = name != "address"
            table.add_column(name, justify=justify, overflow="fold", no_wrap=is_whole)
        for row in cells:
            table.add_row(*(row.get(name, "") for name in names))
        if Measurement.get(out, out.options.update(width=WIDTH_MAX), table).maximum <= out.width:
            break
    return table


def _cells(node: Mapping[str, Any], nodes: Nodes) -> dict[str, str]:
    """The cells of a node's row, by column."""
    node_id, status, rows = node["node_id"], node["status"], rows_by_leader(nodes)
    cells = {
        "node": _shown(node_id or "?"),
        "role": _role(node, find_learners(nodes), find_removed(nodes)),
        "address": _shown(node["address"] or node["error"]),
    }
    row = rows.get(node_id)
    if row is not None:
        cells |= {"state": _shown(row["state"]), "lag": _lag(row["lag_ms"])}
        if len({r["region"] for r in rows.values()}) > 1:
            cells["region"] = _shown(row["region"])
    if status is not None:
        cells |= {
            "term": _shown(status["term"]),
            "leader": _shown((status["is_running"] and status["leader_id"]) or "none"),
            "commit": _shown(status["commit_index"]),
            "applied": _shown(status["applied_index"]),
            "sequence": _shown(status["sequence"]),
        }
        others = {other["status"].get("version") for other in nodes if other["status"] is not None}
        if len(others) > 1:
            cells["version"] = _shown(status.get("version", ""))
    return cells


def _shown(value: object) -> str:
    """What a node reported, as a cell: neither markup nor control characters have an effect."""
    return escape(printable(value))
