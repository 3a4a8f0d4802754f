"""A node's metrics, in Prometheus' terms.

    prometheus_client.REGISTRY.register(raftha.metrics.Collector(ha))

`ha` is either manager, started or not. All values are read at scrape time; the node's counters are
in `raftha.node.statistics`. docs/reference/metrics.md lists all metrics, and a test keeps it
complete.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import Protocol

from raftha.extras import extra
from raftha.node.statistics import Histogram, Statistics
from raftha.types import (
    ArchiveStatus,
    BackupState,
    HaStatus,
    Health,
    ReplicaStatus,
    ReplicationState,
)

with extra("metrics"):
    from prometheus_client import (
        CollectorRegistry,
        GCCollector,
        PlatformCollector,
        ProcessCollector,
    )
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.metrics_core import Metric
    from prometheus_client.registry import Collector as PrometheusCollector

ROLES = ("follower", "pre_candidate", "candidate", "leader", "removed", "stopped", "failed")

_NUMBERS = (
    ("term", "The term the node is in."),
    ("first_index", "The first entry that the log holds."),
    ("last_index", "The last entry that the log holds."),
    ("persisted_index", "The last entry that is on this node's disk."),
    ("commit_index", "The last entry that is committed, as far as this node knows."),
    ("applied_index", "The last entry whose commands this node has applied."),
    ("checkpoint_index", "The last entry whose effects LMDB holds durably."),
    ("protocol_version", "The protocol that the cluster uses."),
    ("machine_version", "The version of the state machine that the cluster uses."),
)


class Observed(Protocol):
    """Either manager."""

    def observe(self) -> tuple[HaStatus, Statistics]: ...


class Collector(PrometheusCollector):
    """Collects a manager's metrics when the registry is scraped."""

    def __init__(self, manager: Observed) -> None:
        self._manager = manager

    def describe(self) -> list[Metric]:
        """Return nothing: the names come with the values."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics with their current values."""
        status, statistics = self._manager.observe()
        yield from _of_node(status)
        yield from _of_replicas(status)
        yield from _of_backups(status)
        yield from _of_archive(status.archive)
        yield from _of_repository(statistics)
        yield from _of_statistics(statistics)


class Exposition:
    """A manager's metrics, and its process's, as the text that Prometheus scrapes."""

    def __init__(self, manager: Observed) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(Collector(manager))
        for kind in (ProcessCollector, PlatformCollector, GCCollector):
            kind(registry=self._registry)

    def render(self, accept: str) -> tuple[str, bytes]:
        """Return content type and text in the best format that `accept`, a header, names."""
        encode, kind = choose_encoder(accept)
        return kind, encode(self._registry)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"raftha_{name}", text, value=float(value))


def _of_node(status: HaStatus) -> Iterator[Metric]:
    yield _gauge("up", "1 if the node runs, 0 if it is stopped or has failed.", status.is_running)
    yield _gauge("is_leader", "1 if the node leads.", status.is_primary)
    yield _gauge("has_lease", "1 if it leads and holds a lease.", status.has_lease)
    role = GaugeMetricFamily("raftha_role", "1 for the role the node has.", labels=["role"])
    for name in ROLES:
        role.add_metric([name], float(name == status.role))
    yield role
    yield _gauge("leader_id", "The node that leads; 0 if none is known.", status.leader_id or 0)
    for name, text in _NUMBERS:
        yield _gauge(name, text, getattr(status, name))
    yield _gauge("compared_index", "The entry of the last comparison.", status.compared_index)
    yield _gauge("diverged", "Members whose state differed then.", len(status.diverged))
    yield _gauge(
        "members_to_upgrade",
        "Members that keep the cluster from using all that this node supports.",
        len(status.upgrade_waits_for),
    )
    info = GaugeMetricFamily("raftha_info", "1 for this version.", labels=["version"])
    info.add_metric([status.version], 1.0)
    yield info
    yield CounterMetricFamily(
        "raftha_commands_applied",
        "Commands applied over the cluster's life: the sequence number.",
        value=float(status.sequence),
    )


def _of_backups(status: HaStatus) -> Iterator[Metric]:
    state = GaugeMetricFamily("raftha_backup_state", "1 for the state.", labels=["state"])
    for each in BackupState:
        state.add_metric([each.value], float(each is status.backup_state))
    yield state
    last = status.last_backup
    yield _gauge(
        "backup_last_success_timestamp_seconds",
        "The time of the newest state that a backup can restore, since 1970 UTC; 0 for none.",
        0.0 if last is None else last.time_us / 1e6,
    )
    yield _gauge(
        "backup_duration_seconds",
        "How long that backup took.",
        0.0 if last is None else last.duration_ms / 1000,
    )
    size = GaugeMetricFamily("raftha_backup_bytes", "The size of that backup.", labels=["kind"])
    places = GaugeMetricFamily(
        "raftha_backup_in_destination",
        "1 if that backup is in the destination.",
        labels=["destination"],
    )
    if last is not None:
        size.add_metric(["raw"], float(last.size_bytes))
        size.add_metric(["stored"], float(last.size_compressed))
        for name, found in last.destinations.items():
            places.add_metric([name], float(found == "ok"))
    yield from (size, places)


def _of_archive(archive: ArchiveStatus | None) -> Iterator[Metric]:
    age = GaugeMetricFamily(
        "raftha_archive_rpo_seconds",
        "How old the oldest command is that is not in the destination.",
        labels=["destination"],
    )
    sequence = GaugeMetricFamily(
        "raftha_archived_sequence",
        "The last command whose log is in the destination.",
        labels=["destination"],
    )
    failed = GaugeMetricFamily(
        "raftha_archive_failed",
        "1 if the last try to archive there has failed.",
        labels=["destination"],
    )
    for name, to in archive.destinations.items() if archive is not None else ():
        age.add_metric([name], to.rpo_ms / 1000)
        sequence.add_metric([name], float(to.sequence))
        failed.add_metric([name], float(bool(to.error)))
    yield from (age, sequence, failed)
    backlog = 0 if archive is None else archive.backlog_bytes
    yield _gauge("archive_backlog_bytes", "About how much log is in no destination.", backlog)
    gaps = CounterMetricFamily("raftha_archive_gaps", "Gaps in the archive, since the start.")
    gaps.add_metric([], 0.0 if archive is None else float(archive.gaps))
    yield gaps


def _of_repository(statistics: Statistics) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "raftha_repository_requests",
        "Requests to destinations of backups.",
        labels=["destination", "op", "result"],
    )
    for labels, count in sorted(dict(statistics.repository_requests).items()):
        requests.add_metric(list(labels), float(count))
    yield requests
    yield _gauge("spool_bytes", "Changes kept for incremental backups.", statistics.spool_bytes)
    drill = statistics.drill
    yield _gauge(
        "drill_ok",
        "1 if the last drill that this node knows of restored the right contents; 0 without one.",
        drill is not None and drill.is_ok,
    )
    yield _gauge(
        "drill_timestamp_seconds",
        "When that drill began, since 1970 UTC; 0 for none.",
        0.0 if drill is None else drill.started_us / 1e6,
    )
    yield _gauge(
        "restore_seconds",
        "How long that drill took to restore: the measured recovery time.",
        0.0 if drill is None else drill.seconds,
    )


def _of_replicas(status: HaStatus) -> Iterator[Metric]:
    voters = sum(replica.is_voter for replica in status.replicas)
    yield _gauge("voters", "Members whose votes and disks count.", voters)
    yield _gauge("learners", "Members that only receive.", len(status.replicas) - voters)
    labels = ["node"]
    connected = GaugeMetricFamily("raftha_peer_connected", "1 if connected.", labels=labels)
    match = GaugeMetricFamily(
        "raftha_peer_match_index", "The last entry known to be on the peer's disk.", labels=labels
    )
    health = GaugeMetricFamily(
        "raftha_health", "1 for what the checks of a peer, or of the own disk, say.",
        labels=["node", "health"],
    )  # fmt: skip
    for replica in status.replicas:
        node = [str(replica.node_id)]
        _add_health(health, node, replica)
        if replica.node_id != status.node_id:
            connected.add_metric(node, float(replica.connected))
            if replica.match_index is not None:
                match.add_metric(node, float(replica.match_index))
    yield from (connected, match, health)
    yield from _of_lag(status)


def _of_lag(status: HaStatus) -> Iterator[Metric]:
    yield _gauge(
        "replication_lag_seconds_max",
        "The largest lag of a voter.",
        status.replication_lag_ms / 1000,
    )
    state = GaugeMetricFamily("raftha_replication_state", "1 for the state.", labels=["state"])
    for name in ReplicationState:
        state.add_metric([name.value], float(name is status.replication_state))
    yield state
    lag = GaugeMetricFamily(
        "raftha_replica_lag_seconds", "Age of the oldest entry not applied.", labels=["node"]
    )
    behind = GaugeMetricFamily(
        "raftha_replica_lag_commands", "Commands not applied.", labels=["node"]
    )
    offset = GaugeMetricFamily(
        "raftha_clock_offset_seconds",
        "How far a member's wall clock is ahead of the one on which most voters agree.",
        labels=["node"],
    )
    for replica in status.replicas:
        offset.add_metric([str(replica.node_id)], replica.clock_offset_ms / 1000)
        lag.add_metric([str(replica.node_id)], replica.lag_ms / 1000)
        behind.add_metric([str(replica.node_id)], float(replica.lag_sequences))
    yield from (lag, behind, offset)


def _add_health(family: GaugeMetricFamily, node: list[str], replica: ReplicaStatus) -> None:
    for health in Health:
        family.add_metric([*node, health.value], float(health is replica.health))


def _of_statistics(statistics: Statistics) -> Iterator[Metric]:
    # Copied in one step, since other threads go on counting.
    lease_reads = sum(list(statistics.lease_reads.values()))
    reads = {**statistics.reads, "leased": lease_reads} if lease_reads else statistics.reads
    yield _counter("reads", "Reads asked for.", "consistency", reads)
    yield _counter("errors", "Calls that ended with an error.", "error", statistics.errors)
    yield _counter("events", "Events, by kind.", "kind", statistics.events)
    yield CounterMetricFamily(
        "raftha_peers_refused",
        "Peers, or strangers, that were not let in or thrown out.",
        value=float(statistics.peers_refused),
    )
    yield _gauge("state_file_bytes", "The size of the state's file.", statistics.state_bytes.file)
    yield _gauge("state_used_bytes", "What of it is in use.", statistics.state_bytes.used)
    yield _gauge(
        "certificate_expires_timestamp_seconds",
        "When the node's certificate for its peers expires, since 1970 UTC; 0 without TLS.",
        statistics.certificate_expires_at,
    )
    for name, text, histogram in (
        ("log_write_seconds", "One write and sync of the log.", statistics.log_write),
        ("commit_seconds", "From taking a batch to applying it.", statistics.commit),
        ("checkpoint_seconds", "One checkpoint.", statistics.checkpoint),
    ):
        yield _histogram(name, text, histogram)


def _counter(name: str, text: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(f"raftha_{name}", text, labels=[label])
    for value, count in sorted(dict(counts).items()):
        family.add_metric([value], float(count))
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    counts = list(accumulate(histogram.counts))
    bounds = [*map(str, histogram.bounds), "+Inf"]
    return HistogramMetricFamily(
        f"raftha_{name}",
        text,
        buckets=[(bound, float(count)) for bound, count in zip(bounds, counts, strict=True)],
        sum_value=histogram.sum,
    )
