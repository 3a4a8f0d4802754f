"""Addresses as settings hold them: "host:port" in text."""

from __future__ import annotations

import ipaddress

from raftha.config.limits import HOST_CHARACTERS_MAX, PORT_MAX
from raftha.errors import ConfigError


def split_address(address: str) -> tuple[str, int] | None:
    """Split "host:port" (or "[v6]:port"); None if `address` has another form.

    Control characters have no place in a host: addresses are shown on terminals.
    """
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    is_port = port.isascii() and port.isdigit() and len(port) <= 20 and int(port) <= PORT_MAX
    if not colon or not is_port or not 1 <= len(host) <= HOST_CHARACTERS_MAX:
        return None
    if not host.isprintable():
        return None
    return host, int(port)


def parse_address(name: str, address: str) -> tuple[str, int]:
    """Split "host:port" (or "[v6]:port"). ConfigError naming `name` if it has another form."""
    parts = split_address(address)
    if parts is None:
        raise ConfigError(f'{name} must be "host:port", got {address!r}')
    return parts


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
