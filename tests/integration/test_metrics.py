"""Metrics: scraped values are true, and docs/reference/metrics.md lists all of them."""

from __future__ import annotations

import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import raftha
from raftha.config import MIB
from raftha.errors import ConfigError
from raftha.metrics import Collector
from raftha.server import ServerConfig
from raftha.testing.processes import reserve_port
from tests.support.conditions import wait_until
from tests.support.nodes import free_addresses, make_config
from tests.support.servers import Host

Samples = dict[tuple[str, tuple[str, ...]], float]


def parse(text: str) -> Samples:
    """All samples by name and the values of their labels, in the order of the labels' names."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scrape(manager: raftha.HaManager) -> Samples:
    registry = CollectorRegistry()
    registry.register(Collector(manager))
    return parse(generate_latest(registry).decode())


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[raftha.HaManager]]:
    members = dict(enumerate(free_addresses(3), start=1))
    managers = [raftha.HaManager(make_config(tmp_path, i, members)) for i in members]
    for manager in managers:
        manager.start()
    yield managers
    for manager in managers:
        manager.stop()


@pytest.mark.slow
def test_scraped_metrics_match_what_happened(nodes: list[raftha.HaManager]) -> None:
    for _ in range(5):
        nodes[0].put(b"key", b"value")
    nodes[0].get(b"key")
    nodes[0].get(b"key", consistency="stale")
    with pytest.raises(raftha.InvalidRequest):
        nodes[0].execute("nothing of this name")
    wait_until(lambda: nodes[0].get_status().leader_id is not None, "there is a leader")
    scraped = [scrape(node) for node in nodes]
    assert sum(samples["raftha_is_leader", ()] for samples in scraped) == 1
    first, status = scraped[0], nodes[0].get_status()
    assert first["raftha_up", ()] == 1
    assert first["raftha_commands_applied_total", ()] == status.sequence
    assert first["raftha_commit_index", ()] == status.commit_index
    assert first["raftha_reads_total", ("linearizable",)] == 1
    assert first["raftha_reads_total", ("stale",)] == 1
    assert first["raftha_errors_total", ("InvalidRequest",)] == 1
    assert first["raftha_log_write_seconds_count", ()] >= 5
    assert first["raftha_voters", ()] == 3
    assert first["raftha_peer_connected", ("2",)] == 1
    assert first["raftha_health", ("healthy", "3")] == 1
    leader = next(s for s in scraped if s["raftha_is_leader", ()] == 1)
    assert leader["raftha_commit_seconds_count", ()] >= 5


@pytest.mark.slow
def test_a_node_that_does_not_run_can_be_scraped(tmp_path: Path) -> None:
    manager = raftha.HaManager(make_config(tmp_path, 1, {1: free_addresses(1)[0]}))
    assert scrape(manager)["raftha_up", ()] == 0
    manager.start()
    assert scrape(manager)["raftha_up", ()] == 1
    manager.stop()
    assert scrape(manager)["raftha_up", ()] == 0


@pytest.mark.slow
def test_the_list_in_the_docs_is_complete(nodes: list[raftha.HaManager]) -> None:
    nodes[0].put(b"key", b"value")
    registry = CollectorRegistry()
    registry.register(Collector(nodes[0]))
    shown = set(
        re.findall(r"^# TYPE (raftha_\w+)", generate_latest(registry).decode(), re.MULTILINE)
    )
    page = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"
    assert set(re.findall(r"^\| `(raftha_\w+)`", page.read_text(), re.MULTILINE)) == shown


def server_table(folder: Path) -> dict[str, object]:
    peers, clients, metrics = free_addresses(3)
    return {
        "node_id": 1,
        "data_dir": str(folder),
        "members": {"1": peers},
        "listen": clients,
        "metrics_listen": metrics,
        "wal_segment_bytes": 16 * MIB,
    }


@pytest.mark.slow
def test_a_server_shows_its_metrics_until_it_is_stopped(host: Host, tmp_path: Path) -> None:
    config = ServerConfig.from_mapping(server_table(tmp_path))
    server = host.make(config)
    host.run(server.start())
    url = f"http://{config.metrics_listen}/metrics"
    with urllib.request.urlopen(url, timeout=10) as page:
        samples = parse(page.read().decode())
    assert samples["raftha_up", ()] == 1
    assert ("process_resident_memory_bytes", ()) in samples
    host.run(server.stop())
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url, timeout=10)


@pytest.mark.slow
def test_an_address_for_metrics_that_is_taken_stops_the_start(host: Host, tmp_path: Path) -> None:
    with reserve_port() as taken:
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        table = {**server_table(tmp_path), "metrics_listen": address}
        server = host.make(ServerConfig.from_mapping(table))
        with pytest.raises(ConfigError, match=address):
            host.run(server.start())


@pytest.mark.parametrize(
    ("setting", "value"),
    [("metrics_listen", "192.0.2.1:9100"), ("metrics_listen", 9100), ("log_format", "xml")],
)
def test_bad_settings_are_refused(tmp_path: Path, setting: str, value: object) -> None:
    with pytest.raises(ConfigError, match=setting):
        ServerConfig.from_mapping({**server_table(tmp_path), setting: value})
