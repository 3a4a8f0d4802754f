"""`raftha move`: tell a stopped node the new addresses of a cluster that has moved as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raftha.cli.console import errors_as_lines, printable
from raftha.cli.membership import node_config
from raftha.errors import ConfigError, InvalidRequest


def move(
    config: Annotated[Path, typer.Option(help="The stopped node's settings, a TOML file.")],
    node_id: Annotated[int, typer.Option(help="Its id, to confirm which node it is.")],
    member: Annotated[
        list[str] | None,
        typer.Option(help="ID=HOST:PORT of a member that isn't in the settings; repeatable."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it.")] = False,
) -> None:
    """Move a whole cluster whose addresses have all changed, on one stopped node.

    Write the new addresses into `members` (and `address`) of every node's
    settings, and run this on EVERY node before you start it. The nodes then find
    each other, and their leader records the new addresses in the log. It changes
    no vote and no data.

    While a majority is up, use `raftha member move` instead, for each member.
    """
    from raftha.runtime.moves import plan_moves, record_moves

    with errors_as_lines():
        given = dict(_parse(text) for text in member or ())
        settings = node_config(config, node_id, None)
        with plan_moves(settings, given) as planned:
            for moved, (before, address) in planned.items():
                was = " or ".join(sorted(before))
                typer.echo(printable(f"node {moved}: {was} -> {address}"))
            if not planned:
                raise InvalidRequest("the log of this node has these addresses already")
            if not yes:
                raise InvalidRequest("nothing was changed", hint="--yes does it")
            record_moves(settings, planned)
        typer.echo(f"Node {node_id} knows. Do the same on every other node, then start them.")


def _parse(text: str) -> tuple[int, str]:
    number, _, address = text.partition("=")
    if not number.isdecimal() or not address:
        raise ConfigError(f"--member {text!r:.100} isn't ID=HOST:PORT")
    return int(number), address
