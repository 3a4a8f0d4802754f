"""`raftha init`: order one node to found its cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from raftha.cli.console import errors_as_lines
from raftha.cli.settings import read_config
from raftha.errors import InvalidRequest


def init(
    config: Annotated[Path, typer.Option(help="The node's settings, a TOML file.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do it without asking.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Order ONE node, which doesn't run, to found its cluster. Once in a cluster's life.

    At its next start the node waits until a majority of the members in its
    settings is up, all of them empty, and founds the cluster with them. It founds
    nothing if a member says that it belongs to a cluster.

    Never do this to repair a cluster: a node that lost its disk comes back by
    itself, and for a lost majority there is `raftha recover-quorum`.

    It makes the file that peer_secret_file names if there is none yet. Copy that
    to the other members.
    """
    from raftha.net.peer_secret import make_secret
    from raftha.runtime.founding import order_founding

    with errors_as_lines():
        settings = read_config(config)
        members = ", ".join(f"{i} ({address})" for i, address in settings.members.items())
        name, node_id = settings.cluster_name, settings.node_id
        question = f"Found a new cluster {name!r} of the nodes {members}? None of them has data?"
        if not yes and not typer.confirm(question, err=True):
            raise InvalidRequest("nothing was changed", hint="--yes does it without asking")
        secret = Path(settings.peer_secret_file) if settings.peer_secret_file else None
        makes_secret = secret is not None and not secret.exists()
        if makes_secret and not yes and not typer.confirm(f"Make the secret {secret}?", err=True):
            raise InvalidRequest("nothing was changed", hint="the members need the same secret")
        order_founding(settings)
        if secret is not None and makes_secret:
            make_secret(secret)
            typer.echo(f"made {secret}: copy it to the other members", err=True)
        if as_json:
            typer.echo(json.dumps({"node_id": node_id, "cluster_name": name}))
        else:
            typer.echo(f"node {node_id} founds the cluster {name!r}: start it, and the others")
