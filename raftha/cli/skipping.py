"""`raftha skip-entry`: have a stopped node pass over an entry that ends every node."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from raftha.cli.console import errors_as_lines, printable
from raftha.cli.membership import node_config
from raftha.errors import InvalidRequest


def skip_entry(
    index: Annotated[int, typer.Argument(help="The entry that the node's failure names.")],
    config: Annotated[Path, typer.Option(help="The stopped node's settings, a TOML file.")],
    node_id: Annotated[int, typer.Option(help="Its id, to confirm which node it is.")],
    digest: Annotated[
        str, typer.Option("--hash", help="The entry's hash, where its log lacks the entry.")
    ] = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do it.")] = False,
) -> None:
    """Skip an entry of the log that stops every node, on one stopped node.

    All writes in the entry fail with kind Skipped, and change nothing. Do it
    on EVERY node, learners too, before you start one: nodes that don't skip
    the same entries refuse each other.
    """
    from raftha.runtime.entry_skipping import skip_entry as skip

    with errors_as_lines():
        try:
            wanted = bytes.fromhex(digest) if digest else None
        except ValueError:
            raise InvalidRequest(f"not a hash: {digest!r:.80}") from None
        settings = node_config(config, node_id, None)
        for line in skip(settings, index, wanted, is_trial=not yes):
            typer.echo(printable(line))
        if not yes:
            raise InvalidRequest("nothing was changed", hint="--yes does it")
        typer.echo(
            f"Node {node_id} will skip it. Do the same on every other node, then start them."
        )
