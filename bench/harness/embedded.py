"""The configuration of a node inside this process."""

from __future__ import annotations

from pathlib import Path

import raftha
from raftha.config import read_toml


def read_config(path: Path) -> raftha.HaConfig:
    """Read a node's TOML file without the server's address."""
    table = read_toml(path)
    del table["listen"]
    return raftha.HaConfig.from_mapping(table)
