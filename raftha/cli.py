"""The command `raftha`: run a node, look at a cluster, see a failover.

Theory of operation. Each command does its work through the library, prints for people by default
and one JSON document with `--json`, always to stdout; logs, progress and errors go to stderr.
Exit codes are those of `raftha.console`.

What a command needs is imported when it runs, so that `raftha --help` needn't wait for it.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.markup import escape
from rich.table import Table

from raftha.cli_access import TlsCa, TokenFile, find_access
from raftha.cli_membership import member, recover_quorum
from raftha.console import errors_as_lines, print_table
from raftha.errors import ConfigError, RafthaError
from raftha.logs import LEVELS, log_to_stderr
from raftha.version import VERSION

if TYPE_CHECKING:
    from raftha.call import Access
    from raftha.certificates import Made

DEFAULT_ADDRESS = "127.0.0.1:7000"
STATUS_TIMEOUT_S = 3.0
PROBLEMS_SHOWN = 5

app = typer.Typer(
    name="raftha",
    help="Keep a server process highly available: replicated, durable state through a Raft log.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(member, name="member")
app.command("recover-quorum")(recover_quorum)


def main() -> None:
    """Run the command line; ends the process with one of the exit codes of `raftha.console`."""
    app()


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"raftha {VERSION}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print it."),
    ] = False,
) -> None:
    pass


# ------------------------------------------------------------------------------- serve


@app.command()
def serve(
    config: Annotated[Path, typer.Option(help="The node's settings, a TOML file.")],
    log_level: Annotated[str, typer.Option(help=f"One of {', '.join(LEVELS)}.")] = "info",
) -> None:
    """Run one node until SIGTERM or Ctrl-C, serving the Redis protocol."""
    with errors_as_lines():
        if sys.flags.optimize:
            raise ConfigError(
                "python -O takes away the checks that keep a node from corrupting data",
                hint="start it without -O and PYTHONOPTIMIZE",
            )
        if log_level not in LEVELS:
            raise ConfigError(f"log level {log_level!r} is not one of {', '.join(LEVELS)}")
        from raftha.server import ServerConfig, run

        server_config = ServerConfig.from_toml(config)
        log_to_stderr(log_level, server_config.log_format)
        run(server_config)


# ------------------------------------------------------------------------------- status


@app.command()
def status(
    addresses: Annotated[
        list[str] | None, typer.Argument(help="Nodes to ask, host:port of their clients' side.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Ask the node that this file configures.")
    ] = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show every node of a cluster; one of them that answers is enough to find the others.

    Exit code 1 if no node leads.
    """
    with errors_as_lines():
        asked, access = _whom_to_ask(addresses or [], config, token_file, tls_ca)
        nodes = collect_statuses(asked, access)
        leader = find_leader(nodes)
        if as_json:
            typer.echo(json.dumps({"leader_id": leader, "nodes": nodes}, indent=2))
        else:
            print_table(_status_table(nodes))
            removed = find_removed(nodes)
            if removed:
                typer.echo(f"removed for good: {', '.join(map(str, removed))}")
        if leader is None:
            reached = sum(node["status"] is not None for node in nodes)
            why = "no node answers" if not reached else "no node leads"
            raise RafthaError(why, hint="a majority of the members must run and reach each other")


def _whom_to_ask(
    addresses: Sequence[str], config: Path | None, token_file: Path | None, tls_ca: Path | None
) -> tuple[list[str], Access]:
    from raftha.config import parse_address
    from raftha.server import ServerConfig

    server = ServerConfig.from_toml(config) if config is not None else None
    asked = [*addresses, *([server.listen] if server is not None else [])]
    for address in asked:
        parse_address("address", address)
    return asked or [DEFAULT_ADDRESS], find_access(server, token_file, tls_ca)


def collect_statuses(
    addresses: Sequence[str], access: Access | None = None
) -> list[dict[str, Any]]:
    """Ask `addresses`, and every member they tell of; `access` is for all of them.

    A list of address, node_id, status (the node's `HaStatus` as a dict, None if it didn't answer)
    and error (why not, else ""). A member that doesn't serve clients has the address "".
    """
    nodes: list[dict[str, Any]] = []
    to_ask, asked = list(addresses), set[str]()
    members: dict[int, str] = {}
    while to_ask:
        address = to_ask.pop(0)
        if address in asked:
            continue
        asked.add(address)
        nodes.append(_ask(address, access))
        for replica in (nodes[-1]["status"] or {"replicas": ()})["replicas"]:
            known = members.get(replica["node_id"], "")
            members[replica["node_id"]] = replica["client_address"] or known
            if replica["client_address"]:
                to_ask.append(replica["client_address"])
    by_address = {address: node_id for node_id, address in members.items()}
    for node in nodes:
        node["node_id"] = node["node_id"] or by_address.get(node["address"])
    listed = {node["node_id"] for node in nodes}
    removed = find_removed(nodes)
    nodes += [
        {"node_id": i, "address": "", "status": None, "error": "its client address is not known"}
        for i in members
        if i not in listed and i not in removed
    ]
    # Of a removed node that is gone, an old member may still tell.
    nodes = [node for node in nodes if node["status"] or node["node_id"] not in removed]
    # A node that was asked by two names is shown once.
    unique = {node["node_id"] or node["address"]: node for node in nodes}
    return sorted(unique.values(), key=lambda n: (n["node_id"] is None, n["node_id"], n["address"]))


def _ask(address: str, access: Access | None) -> dict[str, Any]:
    from raftha.call import NO_ACCESS, call

    try:
        reply = json.loads(
            call(address, ("RAFTHA", "STATUS"), STATUS_TIMEOUT_S, access or NO_ACCESS)
        )
        return {"node_id": reply["node_id"], "address": address, "status": reply, "error": ""}
    except (RafthaError, ValueError, TypeError, KeyError) as error:
        reason = str(error) if isinstance(error, RafthaError) else "it is not a raftha node"
        return {"node_id": None, "address": address, "status": None, "error": reason}


def find_leader(nodes: Sequence[Mapping[str, Any]]) -> int | None:
    """The node that says it leads, in the highest term; a deposed one may not know it yet."""
    reached = [node["status"] for node in nodes if node["status"] is not None]
    leading = [s for s in reached if s["is_primary"]]
    if not leading:
        return None
    leader = max(leading, key=lambda s: s["term"])
    return int(leader["node_id"]) if leader["is_running"] else None


def find_removed(nodes: Sequence[Mapping[str, Any]]) -> list[int]:
    """The nodes that once were members, as far as any that was reached knows."""
    reached = [node["status"] for node in nodes if node["status"] is not None]
    return sorted({node_id for status in reached for node_id in status["removed"]})


def _find_learners(nodes: Sequence[Mapping[str, Any]]) -> set[int]:
    """The members that don't vote yet, as who has the most of the log sees it."""
    reached = [node["status"] for node in nodes if node["status"] is not None]
    latest = max(reached, key=lambda s: s["commit_index"], default={"replicas": ()})
    return {r["node_id"] for r in latest["replicas"] if not r["is_voter"]}


def _status_table(nodes: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("node", "role", "term", "leader", "commit", "applied", "lag", "sequence"):
        table.add_column(
            name, justify="left" if name in {"node", "role"} else "right", no_wrap=True
        )
    table.add_column("address", overflow="fold")
    commit = max((n["status"]["commit_index"] for n in nodes if n["status"]), default=0)
    learners, removed = _find_learners(nodes), find_removed(nodes)
    for node in nodes:
        node_id, address, state = str(node["node_id"] or "?"), node["address"], node["status"]
        if state is None:
            blank = [""] * 6
            table.add_row(node_id, "[red]not reached[/]", *blank, escape(address or node["error"]))
            continue
        role = f"[green]{state['role']}[/]" if state["is_primary"] else escape(state["role"])
        if node["node_id"] in removed:
            role = "[red]removed[/]"
        elif node["node_id"] in learners:
            role = "[yellow]learner[/]"
        if state["failure"]:
            role = f"[red]{escape(state['role'])}: {escape(state['failure'])}[/]"
        numbers = (state["commit_index"], state["applied_index"], commit - state["applied_index"])
        leader = str(state["leader_id"] or "none")
        columns = (str(state["term"]), leader, *map(str, numbers), str(state["sequence"]))
        table.add_row(node_id, role, *columns, escape(address))
    return table


# ------------------------------------------------------------------------------- cert

cert = typer.Typer(help="Make what nodes need to trust each other over TLS.", no_args_is_help=True)
app.add_typer(cert, name="cert")

Out = Annotated[Path, typer.Option(help="The folder to write to; nothing is overwritten.")]
Days = Annotated[
    int | None, typer.Option(help="How long it is valid: 10 years for a CA, 825 days for a node.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@cert.command("ca")
def make_ca(
    cluster: Annotated[str, typer.Option(help="The cluster's name: the nodes' cluster_name.")],
    out: Out,
    days: Days = None,
    as_json: AsJson = False,
) -> None:
    """Make the CA of a cluster: ca.crt, which every node needs, and ca.key, which none does."""
    from raftha import certificates

    with errors_as_lines():
        valid = certificates.CA_DAYS if days is None else days
        _show_made(certificates.make_ca(cluster, out, valid), as_json)


@cert.command("node")
def make_node(
    ca: Annotated[Path, typer.Option(help="The folder with ca.crt and ca.key.")],
    node_id: Annotated[int, typer.Option(help="The node it is for, and for no other.")],
    out: Out,
    days: Days = None,
    host: Annotated[
        list[str] | None,
        typer.Option(help="A name or IP address of the node, to use it for clients too; repeat."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a node's certificate: node-ID.crt and node-ID.key, with a copy of ca.crt."""
    from raftha import certificates

    with errors_as_lines():
        valid = certificates.NODE_DAYS if days is None else days
        _show_made(certificates.make_node(ca, node_id, out, valid, host or ()), as_json)


def _show_made(made: Made, as_json: bool) -> None:
    paths = {"certificate": str(made.certificate), "key": str(made.key), "ca": str(made.ca)}
    if as_json:
        typer.echo(json.dumps({**paths, "expires": made.expires.isoformat()}, indent=2))
    else:
        typer.echo(f"wrote {made.certificate} and {made.key}, valid until {made.expires:%Y-%m-%d}")


# ------------------------------------------------------------------------------- demo


@app.command()
def demo(
    source: Annotated[
        Path | None,
        typer.Option("--input", help="A .csv, .jsonl or .txt file, whose rows become the records."),
    ] = None,
    nodes: Annotated[int, typer.Option(min=3, max=9, help="How many nodes to run.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Load a real data set into real processes, kill the leader half way, and check every record.

    By default the data is the Unicode character database that ships with Python, a record a named
    character. Exit code 1 if one acknowledged record is lost or wrong, or a copy differs.
    """
    from raftha.demo import render, run_demo

    # A service manager's or `timeout`'s SIGTERM must clean up as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with errors_as_lines():
        report = run_demo(source, nodes=nodes, show_progress=sys.stderr.isatty())
        if as_json:
            typer.echo(json.dumps(report.as_dict(), indent=2))
        else:
            print_table(render(report))
        if not report.ok:
            raise RafthaError("the demo failed", hint="; ".join(report.problems[:PROBLEMS_SHOWN]))
