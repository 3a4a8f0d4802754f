"""The credentials of commands that query a node: a token, a CA.

Both come from the command line, or from the configuration file of the queried node.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from raftha.client.call import Access
    from raftha.server import ServerConfig

DEFAULT_ADDRESS = "127.0.0.1:7000"

TokenFile = Annotated[
    Path | None, typer.Option(help="The file with the listeners' auth_token. [from --config]")
]
TlsCa = Annotated[
    Path | None,
    typer.Option(help="The CA of the listeners' certificates: speak TLS. [from --config]"),
]


def find_access(
    server: ServerConfig | None, token_file: Path | None, tls_ca: Path | None
) -> Access:
    """Read the given files, else those of `server`; ConfigError if one can't be read."""
    from raftha.client.call import Access
    from raftha.net.tls import client_context
    from raftha.server.access import read_admin_token

    token = read_admin_token("--token-file", token_file) if token_file else ""
    if server is not None:
        token = token or server.token
        if server.listen_tls_cert and server.ha.tls_ca:
            tls_ca = tls_ca or Path(server.ha.tls_ca)
    return Access(token, client_context(tls_ca) if tls_ca else None)


def resolve_targets(
    addresses: Sequence[str], config: Path | None, token_file: Path | None, tls_ca: Path | None
) -> tuple[list[str], Access]:
    """The nodes that the command line names, by address or by file, and the access to them."""
    from raftha.config import parse_address
    from raftha.server import ServerConfig

    server = ServerConfig.from_toml(config) if config is not None else None
    asked = [*addresses, *([server.listen] if server is not None else [])]
    for address in asked:
        parse_address("address", address)
    return asked or [DEFAULT_ADDRESS], find_access(server, token_file, tls_ca)
