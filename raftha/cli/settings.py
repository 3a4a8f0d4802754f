"""A node's settings from its file, with or without those of the server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raftha.config import HaConfig


def read_config(path: Path, data_dir: Path | None = None) -> HaConfig:
    """Read a node's settings; `data_dir` takes the place of the one in the file."""
    from raftha.config import HaConfig, read_toml
    from raftha.server import ServerConfig

    table = read_toml(path)
    if data_dir is not None:
        table["data_dir"] = str(data_dir)
    is_server = "listen" in table
    return ServerConfig.from_mapping(table).ha if is_server else HaConfig.from_mapping(table)
