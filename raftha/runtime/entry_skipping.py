"""Has a stopped node skip an entry that ends every node: for `raftha skip-entry`.

`raftha/storage/directory/skips.py` says why this is safe, and what keeps nodes from differing.
"""

from __future__ import annotations

import logging
import secrets
from pathlib import Path

import msgpack

from raftha.config import HaConfig
from raftha.entry import Entry, EntryKind, decode_groups
from raftha.errors import Compacted, ConfigError, InvalidRequest
from raftha.storage.directory import skips
from raftha.storage.directory.datadir import DataDirectory
from raftha.storage.directory.snapshot import install
from raftha.storage.log.disk import RealDisk
from raftha.storage.log.wal import Wal
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.commands import CALL, unpack_commands
from raftha.storage.state.state import State

SHOWN_MAX = 20
"""Commands of the entry that are named."""

log = logging.getLogger(__name__)


def skip_entry(config: HaConfig, index: int, digest: bytes | None, *, is_trial: bool) -> list[str]:
    """Have a stopped node skip entry `index` from its next start on; return what it holds.

    `digest` is the entry's hash; it may be left out where the node's log has the entry. With
    `is_trial` nothing is changed. InvalidRequest if the entry is another one, has no commands, or
    is in the node's checkpoint already.
    """
    path = Path(config.data_dir)
    if not (path / "identity").exists():
        raise ConfigError(f"{path} is not the data directory of a node; start the node once")
    data = DataDirectory(path, config.cluster_name, config.node_id)
    try:
        entry = _find(config, path, index)
        if entry is None and digest is None:
            raise InvalidRequest(
                f"the log of node {config.node_id} doesn't have entry {index}",
                hint="give the hash that the command has shown on another node",
            )
        if entry is not None and digest not in (None, entry.hash):
            raise InvalidRequest(f"entry {index} of this log has hash {entry.hash.hex()}")
        if entry is not None and entry.kind != EntryKind.BATCH:
            raise InvalidRequest(f"entry {index} has no commands, so there is nothing to skip")
        wanted = digest if entry is None else entry.hash
        assert wanted is not None, "it is known from one of the two"
        if not is_trial:
            skips.add(path, index, wanted)
            log.warning("node=%d skips entry=%d hash=%s", config.node_id, index, wanted.hex())
        return [f"entry {index} {wanted.hex()}", *(_commands(entry) if entry else ())]
    finally:
        data.close()


def _find(config: HaConfig, path: Path, index: int) -> Entry | None:
    """The entry in this node's log; None if it isn't there yet."""
    wal = Wal.open(
        RealDisk(),
        str(path / "wal"),
        segment_bytes=config.wal_segment_bytes,
        salt=lambda: secrets.randbits(64),
    )
    try:
        install(path, wal)
        store = CheckpointStore(path / "state")
        try:
            applied = State(store).applied.index
        finally:
            store.close()
        if index <= applied:
            raise InvalidRequest(
                f"node {config.node_id} has applied entry {index} already, so it can't skip it",
                hint="if other nodes must skip it, remove this node, wipe it and add it again",
            )
        if index > wal.last_index:
            return None
        try:
            return wal.read(index, 1)[0]
        except Compacted as error:
            raise InvalidRequest(str(error)) from error
    finally:
        wal.close()


def _commands(entry: Entry) -> list[str]:
    """What the entry holds, by kind and name."""
    lines = []
    for group in decode_groups(entry.payload):
        for command in unpack_commands(group.commands, group.count) or ():
            is_call = type(command) is tuple and len(command) == 3 and command[0] == CALL
            name = f"call of {command[1]!r:.100}" if is_call else "built-in command"
            lines.append(f"  {name}, {len(msgpack.packb(command))} bytes")
    more = len(lines) - SHOWN_MAX
    return [*lines[:SHOWN_MAX], f"  and {more} more"] if more > 0 else lines
