"""`raftha demo`: real processes, a real data set, the leader killed half way, every record checked.

Theory of operation. A `LocalCluster` runs the nodes. 64 writers, spread over the nodes, load the
records with exactly-once writes. A record counts as acknowledged once its write was answered. When
half of the records are acknowledged, the leader gets SIGKILL while the load goes on. A prober with
connections of its own to every other node begins a write on each *after* the process is gone. Only
a new leader can acknowledge such a write, so the first acknowledgement ends the failover, whose
clock started just before the kill. After the load, the dead node is started again, and timed until
it has applied everything.

Then two checks prove different things:

1.  Every acknowledged record is read through every node. These linearizable reads prove that the
    cluster has kept the record and that each node answers. They don't show which copy was read.
2.  Every node hashes its own copy: the contents of LMDB after a checkpoint. Each hash must equal
    the hash that this process computes from the acknowledged records: so each copy has every
    record, unchanged, and nothing else.
"""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
import time
import unicodedata
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from raftha.cli.backup_tables import size
from raftha.cli.demo_backup import Restoration, back_up_wipe_and_restore, settings_of
from raftha.cli.demo_data import Record, load_records, unicode_records
from raftha.cli.demo_disaster import Disaster, recover_from_deploy, rows_of
from raftha.client import Client
from raftha.errors import InvalidRequest, RafthaError
from raftha.storage.state.store import Hasher
from raftha.testing import LocalCluster

WRITERS = 64
WRITE_TIMEOUT_S = 30.0
"""How long one record may stay unanswered, retries included, before the demo fails."""
FAILOVER_TIMEOUT_S = 60.0
CATCH_UP_TIMEOUT_S = 120.0
READ_BATCH_BYTES = 256 * 1024
READ_BATCH_KEYS = 500
PROBE_KEY = b"raftha-demo-probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failover:
    """The kill of the leader, and the failover that followed."""

    killed_node: int
    new_leader: int
    term_before: int
    term_after: int
    failover_ms: float
    """From the kill to the first acknowledgement of a write that began after it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The result of a demo; the keys of `digests` are node ids as text, as in JSON."""

    source: str
    nodes: int
    records: int
    acknowledged: int
    """Records whose write was answered; `lost` and `wrong` count only among these."""
    load_s: float
    records_per_s: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    """Quantiles of the time from a record's first try to its reply, failover included."""
    failover: Failover
    catch_up_s: float
    """From the restart of the dead node until it had applied everything."""
    lost: int
    """Acknowledged records that are missing when read through some node."""
    wrong: int
    """Acknowledged records that have another value when read through some node."""
    expected_digest: str
    """Hash over the acknowledged records, computed by the demo itself."""
    digests: dict[str, str]
    """Hash over each node's own copy."""
    sequence: int
    """The number of commands applied when the copies were hashed."""
    restoration: Restoration | None = None
    """With --backup: what came of the backups, and of the cluster that was wiped."""
    disaster: Disaster | None = None
    """With --disaster: what came of the bad deploy, and of the cluster that was taken back."""
    problems: list[str] = field(default_factory=list)
    """Everything that went wrong; empty for success."""

    @property
    def ok(self) -> bool:
        """True if nothing was lost, wrong or different."""
        return not self.problems

    @property
    def digests_equal(self) -> bool:
        """True if every node's copy holds exactly the acknowledged records."""
        return set(self.digests.values()) == {self.expected_digest}

    def as_dict(self) -> dict[str, Any]:
        """Convert the report for JSON."""
        fields = dataclasses.asdict(self)
        problems, failover = fields.pop("problems"), fields.pop("failover")
        verdict = {"digests_equal": self.digests_equal, "ok": self.ok, "problems": problems}
        for name in ("disaster", "restoration"):
            found = fields.pop(name)
            verdict = {name: found, **verdict} if found is not None else verdict
        return {**fields, **failover, **verdict}


def run_demo(
    source: Path | None = None,
    *,
    nodes: int = 3,
    show_progress: bool = False,
    with_backup: bool = False,
    with_disaster: bool = False,
) -> Report:
    """Run the whole demo; see the module's docstring. InvalidRequest if `source` can't be used.

    `with_backup`: the cluster is wiped in the end, and restored (`demo_backup.py`).
    `with_disaster`: its data is damaged, and it is taken back (`demo_disaster.py`).
    """
    if with_backup and with_disaster:
        raise InvalidRequest("the demo has one ending: --backup and --disaster exclude each other")
    records = load_records(source) if source else unicode_records()
    name = source.name if source else f"Unicode {unicodedata.unidata_version} character database"
    with (
        tempfile.TemporaryDirectory(prefix="raftha-demo-backups-") as folder,
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            disable=not show_progress,
        ) as progress,
        LocalCluster(nodes, settings=_settings(folder, with_backup or with_disaster)) as cluster,
    ):
        report = uvloop.run(_Demo(cluster, records, name, progress).run())
        if report.ok and with_backup:
            bar = progress.add_task("backups, wipe, restore", total=1)
            restored = back_up_wipe_and_restore(cluster, records, Path(folder), digest_of)
            problems = [] if restored.is_equal else ["a restored copy differs from the backup"]
            progress.advance(bar)
            return dataclasses.replace(report, restoration=restored, problems=problems)
        if report.ok and with_disaster:
            bar = progress.add_task("bad deploy, recovery, undo", total=1)
            disaster = recover_from_deploy(cluster, records, digest_of)
            progress.advance(bar)
            return dataclasses.replace(report, disaster=disaster, problems=disaster.problems)
        return report


def _settings(folder: str, has_backups: bool) -> dict[str, Any] | None:
    return settings_of(Path(folder)) if has_backups else None


# ------------------------------------------------------------------------------- the run


class _Load:
    """The writers, what they have achieved so far, and how long each write took."""

    def __init__(self, records: Sequence[Record], progress: Progress) -> None:
        self.acknowledged: list[Record] = []
        self.latencies_s: list[float] = []
        self.problems: list[str] = []
        self.duration_s = 0.0
        self.is_half_done = asyncio.Event()
        self._half = (len(records) + 1) // 2
        self._records = iter(records)
        self._progress = progress
        self._bar = progress.add_task("loading", total=len(records))

    async def run(self, clients: Sequence[Client]) -> None:
        """Write all records."""
        begun = time.perf_counter()
        try:
            async with asyncio.TaskGroup() as tasks:
                for number in range(WRITERS):
                    tasks.create_task(self._write(clients[number % len(clients)]))
        finally:
            self.duration_s = time.perf_counter() - begun
            self.is_half_done.set()  # The waiting task must go on, also if too few were answered.

    async def _write(self, client: Client) -> None:
        for record in self._records:
            begun = time.perf_counter()
            try:
                await client.once("SET", *record, timeout_s=WRITE_TIMEOUT_S)
            except RafthaError as error:
                self.problems.append(f"record {record[0].decode()} was not acknowledged: {error}")
                return
            self.latencies_s.append(time.perf_counter() - begun)
            self.acknowledged.append(record)
            if len(self.acknowledged) == self._half:
                self.is_half_done.set()
            self._progress.advance(self._bar)


class _Demo:
    def __init__(
        self, cluster: LocalCluster, records: list[Record], source: str, progress: Progress
    ) -> None:
        self._cluster = cluster
        self._records = records
        self._source = source
        self._progress = progress

    async def run(self) -> Report:
        load = _Load(self._records, self._progress)
        failover = await self._load_and_fail_over(load)
        catch_up_s = await self._restart(failover.killed_node)
        verdict = await self._check(load.acknowledged)
        latencies = sorted(load.latencies_s)
        return Report(
            source=self._source,
            nodes=len(self._cluster.node_ids),
            records=len(self._records),
            acknowledged=len(load.acknowledged),
            load_s=round(load.duration_s, 3),
            records_per_s=round(len(load.acknowledged) / load.duration_s, 1),
            p50_ms=_quantile_ms(latencies, 0.50),
            p99_ms=_quantile_ms(latencies, 0.99),
            max_ms=_quantile_ms(latencies, 1.0),
            failover=failover,
            catch_up_s=round(catch_up_s, 3),
            lost=len(verdict.lost),
            wrong=len(verdict.wrong),
            expected_digest=verdict.expected_digest,
            digests=verdict.digests,
            sequence=verdict.sequence,
            problems=load.problems + verdict.problems,
        )

    async def _load_and_fail_over(self, load: _Load) -> Failover:
        addresses = list(self._cluster.addresses.values())
        # Each client starts at a node of its own and changes to the others when that node is gone.
        clients = [Client(addresses[i:] + addresses[:i]) for i in range(len(addresses))]
        loading = asyncio.create_task(load.run(clients))
        try:
            await load.is_half_done.wait()
            failover = await self._fail_over()
            await loading
            return failover
        finally:
            loading.cancel()
            for client in clients:
                await client.close()

    async def _fail_over(self) -> Failover:
        """Kill the leader and measure how long no write was possible."""
        cluster = self._cluster
        leader = await asyncio.to_thread(cluster.wait_leader)
        status = await asyncio.to_thread(cluster.status, leader)
        assert status is not None
        survivors = [Client([a]) for i, a in cluster.addresses.items() if i != leader]
        try:
            for client in survivors:  # Connections and sessions must not count as failover.
                await client.once("SET", PROBE_KEY, b"")
            killed_at = time.perf_counter()
            await asyncio.to_thread(cluster.kill, leader)
            # The process is gone: only another leader can acknowledge a write that begins now.
            probes = [
                asyncio.create_task(
                    client.once("SET", PROBE_KEY, b"", timeout_s=FAILOVER_TIMEOUT_S)
                )
                for client in survivors
            ]
            await asyncio.wait(probes, return_when=asyncio.FIRST_COMPLETED)
            failover_ms = (time.perf_counter() - killed_at) * 1000
            await asyncio.gather(*probes)
            await survivors[0].once("DEL", PROBE_KEY)
        finally:
            for client in survivors:
                await client.close()
        new_leader = await asyncio.to_thread(cluster.wait_leader)
        new_status = await asyncio.to_thread(cluster.status, new_leader)
        assert new_status is not None
        assert new_leader != leader
        return Failover(
            killed_node=leader,
            new_leader=new_leader,
            term_before=status["term"],
            term_after=new_status["term"],
            failover_ms=round(failover_ms, 1),
        )

    async def _restart(self, node_id: int) -> float:
        bar = self._progress.add_task("catching up", total=1)
        begun = time.perf_counter()
        self._cluster.start_node(node_id)
        await asyncio.to_thread(self._cluster.wait_caught_up, CATCH_UP_TIMEOUT_S)
        self._progress.advance(bar)
        return time.perf_counter() - begun

    async def _check(self, records: Sequence[Record]) -> _Verdict:
        """Read every record through every node, and compare every node's own copy."""
        addresses = self._cluster.addresses
        bar = self._progress.add_task("checking", total=len(records) * len(addresses))
        verdict = _Verdict(expected_digest=digest_of(records))
        for node_id, address in addresses.items():
            async for key, found in find_differences(address, records):
                (verdict.lost if found is None else verdict.wrong).add(key)
                what = "is missing" if found is None else f"has the value {found[:40]!r}"
                verdict.problems.append(f"record {key!r}, read through node {node_id}, {what}")
            self._progress.advance(bar, len(records))
        for node_id, digest in (await asyncio.to_thread(self._cluster.digests)).items():
            verdict.digests[str(node_id)] = digest["hex"]
            verdict.sequence = max(verdict.sequence, digest["sequence"])
            if digest["hex"] != verdict.expected_digest:
                verdict.problems.append(
                    f"node {node_id}'s own copy, {digest['keys']} keys, differs from the"
                    f" {len(records)} acknowledged records"
                )
        return verdict


@dataclass(slots=True, kw_only=True)
class _Verdict:
    expected_digest: str
    digests: dict[str, str] = field(default_factory=dict)
    sequence: int = 0
    lost: set[bytes] = field(default_factory=set)
    wrong: set[bytes] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)


def digest_of(records: Sequence[Record]) -> str:
    """The digest of a node that contains exactly these records."""
    hasher = Hasher()
    for key, value in sorted(records):
        hasher.add(key, value)
    return hasher.finish().hex


async def find_differences(
    address: str, records: Sequence[Record]
) -> AsyncIterator[tuple[bytes, bytes | None]]:
    """Read `records` through one node; yield key and found value of each that differs."""
    async with Client([address]) as client:
        for batch in _batches(records):
            values = await client.call("MGET", *(key for key, _ in batch))
            for (key, value), found in zip(batch, values, strict=True):
                if found != value:
                    yield key, found


def _batches(records: Sequence[Record]) -> Iterator[Sequence[Record]]:
    """Split into batches whose replies stay small."""
    start = size = 0
    for end, (_, value) in enumerate(records):
        if end - start == READ_BATCH_KEYS or (size and size + len(value) > READ_BATCH_BYTES):
            yield records[start:end]
            start, size = end, 0
        size += len(value)
    yield records[start:]


def _quantile_ms(ordered: Sequence[float], quantile: float) -> float:
    if not ordered:
        return 0.0
    return round(ordered[min(int(quantile * len(ordered)), len(ordered) - 1)] * 1000, 2)


# ------------------------------------------------------------------------------- the table


def render(report: Report) -> Table:
    """The report as a table."""
    table = Table(title="raftha demo", show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    failover = report.failover
    color = "green" if report.ok else "red"
    rows = [
        ("data", f"{escape(report.source)}: {report.records:,} records"),
        ("nodes", f"{report.nodes} processes, {WRITERS} writers"),
        ("loaded", f"{report.acknowledged:,} acknowledged in {report.load_s:.1f} s"),
        ("rate", f"{report.records_per_s:,.0f} records/s, the failover included"),
        ("latency", f"p50 {report.p50_ms} ms, p99 {report.p99_ms} ms, max {report.max_ms} ms"),
        ("killed", f"node {failover.killed_node}, leader of term {failover.term_before}, SIGKILL"),
        ("failover", f"{failover.failover_ms} ms from the kill to the next acknowledgement"),
        ("leader", f"node {failover.new_leader}, term {failover.term_after}"),
        ("catch-up", f"{report.catch_up_s} s from starting node {failover.killed_node} again"),
        ("lost", f"[{color}]{report.lost}[/] of {report.acknowledged:,}, read through every node"),
        ("wrong", f"[{color}]{report.wrong}[/]"),
        ("expected", f"{report.expected_digest[:32]}… hash of what was acknowledged"),
    ]
    for node_id, digest in report.digests.items():
        is_right = digest == report.expected_digest
        comparison = "[green]equal[/]" if is_right else "[red]different[/]"
        rows.append((f"node {node_id}", f"{digest[:32]}… {comparison}, hash of its own copy"))
    rows += _restored_rows(report.restoration) if report.restoration is not None else []
    rows += rows_of(report.disaster) if report.disaster is not None else []
    rows.append(("result", f"[{color}]{'ok' if report.ok else 'failed'}[/]"))
    for row in rows:
        table.add_row(*row)
    return table


def _restored_rows(restored: Restoration) -> list[tuple[str, str]]:
    delta = f"{restored.incremental_keys:,} keys, {size(restored.incremental_bytes)}"
    rows = [
        ("full backup", f"{size(restored.full_bytes)} in {restored.full_s} s, read back"),
        ("incremental", f"{delta} in {restored.incremental_s} s, read back"),
        ("wiped", "all nodes, everything that they had stored"),
        ("restored", f"{restored.restore_s} s until every node had all of the backup again"),
        ("expected", f"{restored.expected_digest[:32]}… hash of what was backed up"),
    ]
    for node_id, digest in restored.digests.items():
        is_right = digest == restored.expected_digest
        comparison = "[green]equal[/]" if is_right else "[red]different[/]"
        rows.append((f"node {node_id}", f"{digest[:32]}… {comparison}, hash of its restored copy"))
    return rows
