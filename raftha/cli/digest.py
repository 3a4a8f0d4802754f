"""`raftha digest`: hash every member's own data and compare, on request.

The leader compares the members' states by itself once in `digest_interval_hours`, as of exactly one
entry, and has those replaced that differ. This command only shows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.table import Table

from raftha.cli.access import TlsCa, TokenFile, resolve_targets
from raftha.cli.console import console, errors_as_lines, printable
from raftha.client.cluster_view import collect_statuses
from raftha.errors import RafthaError

if TYPE_CHECKING:
    from raftha.client.call import Access

ATTEMPTS = 3
"""Under writes the members may take their digests at different commands: then they do so again."""


def digest(
    addresses: Annotated[
        list[str] | None, typer.Argument(help="Nodes to ask, host:port of their clients' side.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="Ask the node that this file configures.")
    ] = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds to wait for a digest.")] = 600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the digests as JSON.")] = False,
) -> None:
    """Compare the data of all members: a hash over each one's own copy.

    Exit code 1 if two copies differ, or if a member gave no digest of the same
    command.
    """
    with errors_as_lines():
        asked, access = resolve_targets(addresses or [], config, token_file, tls_ca)
        for _ in range(ATTEMPTS):
            rows = _collect(asked, access, timeout)
            if len({row["sequence"] for row in rows}) == 1:
                break
        if as_json:
            typer.echo(json.dumps(rows, indent=2))
        else:
            console().print(_table(rows))
        _judge(rows)


def _collect(asked: Sequence[str], access: Access, timeout_s: float) -> list[dict[str, Any]]:
    """One row for each member: node_id, sequence, keys, hex; or error."""
    from raftha.client.call import call

    nodes = collect_statuses(asked, access)
    reached = [node for node in nodes if node["status"] is not None]
    if not reached:
        raise RafthaError("no node answers")
    sequence = max(node["status"]["sequence"] for node in reached)

    def ask(node: dict[str, Any]) -> dict[str, Any]:
        row = {"node_id": node["node_id"], "sequence": None, "keys": None, "hex": None, "error": ""}
        if node["status"] is None:
            return row | {"error": node["error"]}
        try:
            reply = json.loads(
                call(node["address"], ("RAFTHA", "DIGEST", sequence), timeout_s, access)
            )
            return row | {name: reply[name] for name in ("sequence", "keys", "hex")}
        except (RafthaError, ValueError, TypeError, KeyError) as error:
            return row | {"error": str(error)}

    with ThreadPoolExecutor(len(nodes)) as pool:
        return list(pool.map(ask, nodes))


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table("node", "sequence", "keys", "hash", box=box.SIMPLE_HEAD)
    for row in rows:
        told = row["error"] or row["hex"]
        numbers = ["" if row[name] is None else str(row[name]) for name in ("sequence", "keys")]
        table.add_row(printable(row["node_id"] or "?"), *numbers, printable(told))
    return table


def _judge(rows: Sequence[dict[str, Any]]) -> None:
    hexes: dict[int, set[str]] = {}
    for row in rows:
        if row["hex"] is not None:
            hexes.setdefault(row["sequence"], set()).add(row["hex"])
    if any(len(found) > 1 for found in hexes.values()):
        raise RafthaError(
            "the members' data differs",
            hint="the leader's next comparison replaces what differs from a majority's copy",
        )
    if len(hexes) > 1 or any(row["hex"] is None for row in rows):
        raise RafthaError(
            "not all members gave a digest of the same command",
            hint="repeat it while all members run and few writes come",
        )
