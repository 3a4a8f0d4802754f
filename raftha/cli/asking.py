"""Asking one node over its client port: the options that name it, and the call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from raftha.cli.access import DEFAULT_ADDRESS, find_access
from raftha.errors import ConfigError, InvalidRequest

if TYPE_CHECKING:
    from raftha.client.call import Access


Connect = Annotated[
    str | None,
    typer.Option(help=f"A node to ask, host:port of their clients' side. [{DEFAULT_ADDRESS}]"),
]
Config = Annotated[Path | None, typer.Option(help="Ask the node that this file configures.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

Asked: TypeAlias = "tuple[str, Access]"
"""A node's address, and the access to it."""


def node_to_ask(
    connect: str | None, config: Path | None, token_file: Path | None, tls_ca: Path | None
) -> Asked:
    """The node that the options name."""
    from raftha.server import ServerConfig

    if connect is not None and config is not None:
        raise ConfigError("--connect and --config exclude each other")
    server = ServerConfig.from_toml(config) if config else None
    address = server.listen if server else connect or DEFAULT_ADDRESS
    return address, find_access(server, token_file, tls_ca)


def ask(asked: Asked, args: tuple[str | int, ...], timeout_s: float) -> Any:
    """Send one command; return the reply. InvalidRequest if the server says that it is wrong."""
    from raftha.client.call import call
    from raftha.client.resp import ReplyError

    address, access = asked
    try:
        return call(address, args, timeout_s, access)
    except ReplyError as error:
        # Servers reply ERR to a request that is invalid.
        word, _, detail = str(error).partition(" ")
        if word != "ERR":
            raise
        raise InvalidRequest(detail) from error
