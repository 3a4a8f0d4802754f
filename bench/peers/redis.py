"""Redis, from Debian's redis-server: a primary and two replicas, the log synced with every turn of
the primary's loop (appendfsync always), and WAIT 1 after each SET.

    redis-server --port P --appendonly yes --appendfsync always [--replicaof 127.0.0.1 P1]

This is no consensus: WAIT reports that a replica has received a write, not that it has synced it,
and a failover may lose acknowledged writes. It shows what replication without agreement costs. Each
caller has a connection of its own, as WAIT holds up the one that it is sent on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness.connections import RespConnection
from bench.harness.load import Load
from bench.harness.machine import program_version
from bench.harness.samples import Sample
from bench.harness.systems import Measure, Unsupported, find_program, measure_clients
from bench.peers.servers import free_ports, running, wait_for
from raftha.client.call import call
from raftha.client.resp import pack_request
from raftha.errors import RafthaError


class WaitConnection(RespConnection):
    """SET, then WAIT until one replica has it."""

    after_put = pack_request((b"WAIT", 1, 1000))


class Redis:
    """The three of them."""

    name = "redis, AOF always, WAIT 1"
    settings = "no consensus"

    def missing(self) -> str:
        there = find_program("redis-server")
        return "" if there else "there is no redis-server (Debian: redis-server)"

    def version(self) -> str:
        return program_version("redis-server", "--version")

    @contextmanager
    def start(self, folder: Path) -> Iterator[Measure]:
        ports = free_ports(3)
        commands = []
        for i, port in enumerate(ports):
            data = folder / f"redis-{i}"
            data.mkdir()
            command = [find_program("redis-server"), "--port", str(port), "--dir", str(data)]
            command += ["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes"]
            command += ["--appendfsync", "always", "--repl-diskless-sync-delay", "0"]
            commands.append(command + (["--replicaof", "127.0.0.1", str(ports[0])] if i else []))
        with running(commands, folder):
            address = f"127.0.0.1:{ports[0]}"
            wait_for("Redis has no replicas", folder, lambda: _has_replicas(address))

            def measure(load: Load) -> Sample:
                if not load.callers:
                    raise Unsupported("WAIT holds up its connection: there is no open loop")
                kind = "bench.peers.redis:WaitConnection"
                return measure_clients(kind, [address], load, folder, load.callers)

            yield measure


def _has_replicas(address: str) -> bool:
    try:
        return bytes(call(address, ("INFO", "replication"), 2.0)).count(b"state=online") == 2
    except RafthaError:
        return False


SYSTEMS = [Redis()]
