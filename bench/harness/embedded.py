"""The configuration of a node that this process has inside it."""

from __future__ import annotations

from pathlib import Path

import raftha
from raftha.config import read_toml


def read_config(path: Path) -> raftha.HaConfig:
    """A node's TOML file, but for the server's address: there is none."""
    table = read_toml(path)
    del table["listen"]
    return raftha.HaConfig.from_mapping(table)
