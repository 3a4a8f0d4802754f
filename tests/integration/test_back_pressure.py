"""A node that gets more than its disk or its peers can take refuses it at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import raftha
from raftha.config import MIB
from raftha.storage.state.checkpoint import CheckpointStore
from tests.support.nodes import found_once, free_addresses

pytestmark = pytest.mark.slow

BOUND_BYTES = 8 * MIB
VALUE = bytes(64 * 1024)


def make_nodes(folder: Path, count: int) -> list[raftha.aio.HaManager]:
    members = dict(enumerate(free_addresses(count), start=1))
    found_once(folder, members)
    return [
        raftha.aio.HaManager(
            raftha.HaConfig(
                node_id=node_id,
                data_dir=folder / str(node_id),
                members=members,
                wal_segment_bytes=16 * MIB,
                max_wal_size=MIB,
                submit_queue_bytes_max=BOUND_BYTES,
                request_timeout_s=60,
            )
        )
        for node_id in members
    ]


class Gate:
    """Checkpoints into some folders wait while it is closed."""

    def __init__(self) -> None:
        self.folders: Sequence[Path] = ()
        self.opened = threading.Event()
        self.opened.set()

    def close(self, *folders: Path) -> None:
        self.folders = folders
        self.opened.clear()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made, original = Gate(), CheckpointStore.write

    def write(self: CheckpointStore, *args: Any) -> None:
        if any(folder in self._path.parents for folder in made.folders):
            made.opened.wait()
        original(self, *args)

    monkeypatch.setattr(CheckpointStore, "write", write)
    yield made
    made.opened.set()


def buffered_bytes(node: raftha.aio.HaManager) -> int:
    """What a node holds in memory for its next checkpoint."""
    assert node._runtime is not None
    return node._runtime.node.state.buffer_bytes


BUFFERED_MAX = 2 * MIB + 4 * MIB + 16 * MIB
"""The bound on the buffer, a batch, and the appends that may be under way to a follower by then."""


def test_writers_are_refused_while_a_checkpoint_hangs_and_go_on_afterwards(
    tmp_path: Path, gate: Gate
) -> None:
    async def run() -> None:
        (node,) = make_nodes(tmp_path, 1)
        async with node:
            await node.put(b"first", b"value")
            gate.close(tmp_path)
            writes: list[asyncio.Future[raftha.Receipt]] = []
            while not any(write.done() and write.exception() for write in writes):
                assert len(writes) < 1000, "no write is ever refused"
                writes.append(asyncio.ensure_future(node.put(b"key%d" % len(writes), VALUE)))
                assert await node.get(b"first") == b"value", "reads go on"
            assert buffered_bytes(node) < BUFFERED_MAX
            gate.opened.set()
            results = await asyncio.gather(*writes, return_exceptions=True)
            assert {type(result) for result in results} == {raftha.Receipt, raftha.Overloaded}
            assert await node.put(b"again", b"goes")

    asyncio.run(run())


def test_a_follower_whose_checkpoint_hangs_takes_no_more_and_catches_up(
    tmp_path: Path, gate: Gate
) -> None:
    async def run() -> None:
        nodes = make_nodes(tmp_path, 3)
        await asyncio.gather(*(node.start() for node in nodes))
        try:
            await nodes[0].put(b"first", b"value")
            leader = (await nodes[0].get_status()).leader_id
            slow = next(node for node in nodes if node.config.node_id != leader)
            others = [node for node in nodes if node is not slow]
            term = (await slow.get_status()).term
            gate.close(Path(slow.config.data_dir))
            for number in range(600):
                await others[0].put(b"key%d" % number, VALUE)
            assert buffered_bytes(slow) < BUFFERED_MAX < 600 * len(VALUE)
            assert (await slow.get_status()).term == term, "it heard the leader all the time"
            gate.opened.set()
            sequence = (await slow.put(b"last", b"value")).sequence
            digests = await asyncio.gather(*(node.digest(sequence) for node in nodes))
            assert len({digest.hex for digest in digests}) == 1
        finally:
            gate.opened.set()
            await asyncio.gather(*(node.stop() for node in nodes))

    asyncio.run(run())
