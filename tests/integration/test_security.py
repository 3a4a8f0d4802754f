"""Real nodes and real TLS: a cluster trusts its members only."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import ssl
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

import raftha
from raftha.core import Append, Heartbeat, VoteRequest
from raftha.entry import Group, encode_group
from raftha.errors import ConfigError, RafthaError
from raftha.net import certificate_renewal
from raftha.net.certificates import Made, make_node
from raftha.net.wire import Hello, encode
from raftha.node.messages import Forward, MembershipRequest
from raftha.storage.state.commands import pack_put
from raftha.testing import LocalCluster
from raftha.version import PROTOCOL_VERSION
from tests.support.certificates import CLUSTER, expire, make_cluster, peer_tls
from tests.support.conditions import wait_until
from tests.support.nodes import found_once, free_addresses, make_config

pytestmark = pytest.mark.slow


def make_managers(folder: Path, made: dict[int, Made]) -> list[raftha.HaManager]:
    members = dict(enumerate(free_addresses(3), start=1))
    found_once(folder, members, CLUSTER)
    return [
        raftha.HaManager(
            dataclasses.replace(
                make_config(folder, node_id, members),
                cluster_name=CLUSTER,
                tls_ca=made[node_id].ca,
                tls_cert=made[node_id].certificate,
                tls_key=made[node_id].key,
            )
        )
        for node_id in members
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Made]:
    return make_cluster(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def nodes(
    tmp_path_factory: pytest.TempPathFactory, made: dict[int, Made]
) -> Iterator[list[raftha.HaManager]]:
    managers = make_managers(tmp_path_factory.mktemp("nodes"), made)
    for manager in managers:
        manager.start()
    yield managers
    for manager in managers:
        manager.stop()


def test_nodes_replicate_over_tls_and_a_restarted_one_catches_up(
    tmp_path: Path, made: dict[int, Made]
) -> None:
    managers = make_managers(tmp_path, made)
    for manager in managers:
        manager.start()
    try:
        large = bytes(range(256)) * 2048
        for i in range(20):
            managers[i % 3].put(b"key%d" % i, large)
        assert all(manager.get(b"key7") == large for manager in managers)
        leader = next(m for m in managers if m.get_status().is_primary)
        others = [manager for manager in managers if manager is not leader]
        leader.stop()
        others[0].put(b"after", b"1")
        leader.start()
        wait_until(
            lambda: leader.get(b"after", consistency="stale") == b"1", "it does not catch up"
        )
        assert len({manager.digest().hex for manager in managers}) == 1
    finally:
        for manager in managers:
            manager.stop()


def test_nodes_stop_and_start_under_load_and_none_fails_or_hangs(
    tmp_path: Path, made: dict[int, Made], caplog: pytest.LogCaptureFixture
) -> None:
    """Connections break in every state, also during handshakes."""
    managers = make_managers(tmp_path, made)
    is_over = threading.Event()

    def load(manager: raftha.HaManager) -> None:
        while not is_over.is_set():
            try:
                manager.put(b"key", bytes(20_000), timeout=0.5)
            except RafthaError:
                is_over.wait(0.002)

    for manager in managers:
        manager.start()
    writers = [threading.Thread(target=load, args=(manager,)) for manager in managers]
    for writer in writers:
        writer.start()
    try:
        for turn in range(12):
            managers[turn % 3].stop()
            managers[turn % 3].start()
        assert managers[0].put(b"still", b"here")
    finally:
        stopping = [threading.Thread(target=manager.stop) for manager in managers]
        for each in stopping:
            each.start()
        for each in stopping:
            each.join()
        is_over.set()
        for writer in writers:
            writer.join()
    assert "failed reason" not in caplog.text


def shown_by(node: raftha.HaManager, made: Made) -> str:
    """The serial number of the certificate that `node` shows to the peer of `made`."""
    context = peer_tls(made).client
    with (
        socket.create_connection(address_of(node), 10) as plain,
        context.wrap_socket(plain) as connection,
    ):
        certificate = connection.getpeercert()
    assert certificate is not None
    return str(certificate["serialNumber"])


def test_a_revoked_certificate_is_cut_off_and_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate_renewal, "CHECK_INTERVAL_S", 0.02)
    made = make_cluster(tmp_path)
    revoked = tmp_path / "revoked"
    revoked.write_text("")
    managers = [
        raftha.HaManager(dataclasses.replace(manager.config, tls_revoked=revoked))
        for manager in make_managers(tmp_path / "nodes", made)
    ]
    for manager in managers:
        manager.start()
    try:
        managers[0].put(b"key", b"value")
        revoked.write_text("node 3\n")
        wait_until(lambda: not connected(managers[0], 3), "it is still connected")
        managers[0].put(b"key", b"other")
        wait_until(lambda: not connected(managers[1], 3), "it is still connected")
        revoked.write_text("")
        wait_until(lambda: connected(managers[0], 3), "it is not let in again")
    finally:
        for manager in managers:
            manager.stop()


def connected(manager: raftha.HaManager, node_id: int) -> bool:
    return next(r.connected for r in manager.get_status().replicas if r.node_id == node_id)


def test_a_renewed_certificate_is_taken_up_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(certificate_renewal, "CHECK_INTERVAL_S", 0.02)
    made = make_cluster(tmp_path)
    managers = make_managers(tmp_path / "nodes", made)
    for manager in managers:
        manager.start()
    try:
        managers[0].put(b"key", b"value")
        first = shown_by(managers[0], made[2])
        renewed = make_node(tmp_path / "ca", 1, tmp_path / "renewed")
        for old, new in ((made[1].certificate, renewed.certificate), (made[1].key, renewed.key)):
            assert shown_by(managers[0], made[2]) == first
            new.replace(old)
            if new is renewed.certificate:
                wait_until(lambda: "not used: tls_key" in caplog.text, "the change is not noticed")
        wait_until(lambda: shown_by(managers[0], made[2]) != first, "the change is not used")
        managers[2].stop()
        managers[2].start()
        assert managers[2].get(b"key") == b"value"
        assert managers[0].get_status().role != "failed"
    finally:
        for manager in managers:
            manager.stop()


def address_of(node: raftha.HaManager) -> tuple[str, int]:
    host, port = node.config.members[node.config.node_id].split(":")
    return host, int(port)


def test_a_stranger_in_plain_text_is_told_nothing(
    nodes: list[raftha.HaManager], caplog: pytest.LogCaptureFixture
) -> None:
    cluster_id = nodes[0].get_status().cluster_id
    hello = Hello(PROTOCOL_VERSION, cluster_id, 3, 1, 1, "", cluster_name=CLUSTER)
    with socket.create_connection(address_of(nodes[0]), 10) as stranger:
        stranger.sendall(encode(hello))
        received = b""
        try:
            while part := stranger.recv(4096):
                received += part
        except ConnectionResetError:
            pass
    assert cluster_id.encode() not in received
    wait_until(lambda: "wrong version number" in caplog.text, "it is not logged")
    assert nodes[0].put(b"still", b"here")


def test_strangers_with_certificates_are_refused_and_the_node_goes_on(
    nodes: list[raftha.HaManager], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A malicious peer leaves out the check that a peer does at its start."""
    strangers = make_cluster(tmp_path)
    expired = make_late(Path(nodes[0].config.tls_ca).parent, tmp_path)
    for stranger, reason in (
        (strangers[3], "isn't of this CA"),
        (expired, "certificate has expired"),
    ):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(stranger.certificate, stranger.key)
        with (
            socket.create_connection(address_of(nodes[0]), 10) as plain,
            context.wrap_socket(plain) as connection,
            contextlib.suppress(OSError),
        ):
            # In TLS 1.3 our handshake is over before the node has looked at the certificate.
            connection.sendall(b"x" * 100)
            assert connection.recv(1) == b""
        wait_until(partial(lambda text: text in caplog.text, reason), "it is not logged")
    assert nodes[0].put(b"still", b"here")


def knock(node: raftha.HaManager, made: Made | None, hello: Hello) -> None:
    """Call `node` with a certificate, say hello, and be turned away."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if made is not None:
        context.load_cert_chain(made.certificate, made.key)
    with (
        contextlib.suppress(OSError),
        socket.create_connection(address_of(node), 10) as plain,
        context.wrap_socket(plain) as connection,
    ):
        connection.sendall(encode(hello))
        while connection.recv(4096):
            pass


def test_a_stranger_is_refused_and_counted_each_time_and_logged_once(
    tmp_path: Path, made: dict[int, Made], caplog: pytest.LogCaptureFixture
) -> None:
    managers = make_managers(tmp_path, made)
    for manager in managers:
        manager.start()
    one, two, three = managers
    hello = Hello(PROTOCOL_VERSION, one.get_status().cluster_id, 3, 1, 1, "", cluster_name=CLUSTER)

    def expect(reason: str, made: Made | None, hello: Hello) -> None:
        caplog.clear()
        before = one.observe()[1].peers_refused
        for _ in range(6):
            knock(one, made, hello)
        wait_until(lambda: one.observe()[1].peers_refused == before + 6, "it is not counted")
        lines = [line for line in caplog.messages if "peer refused node=1" in line]
        assert len(lines) == 1
        assert reason in lines[0]

    try:
        one.put(b"key", b"value")
        three.stop()
        expect("peer did not return a certificate", None, hello)
        expect("isn't of this CA", make_cluster(tmp_path / "others")[3], hello)
        expect("founded apart", made[3], hello._replace(cluster_id="0" * 32))
        expect("its certificate is for raftha://orders/node/3", made[3], hello._replace(sender=2))
        one.remove_replica(3)
        expect("was removed", made[3], hello)
        one.stop()
        one.start()
        wait_until(lambda: one.get_status().applied_index > 0, "it does not start")
        assert one.get(b"key") == b"value"
        expect("was removed", made[3], hello)
        assert two.put(b"still", b"here")
    finally:
        for manager in managers:
            manager.stop()


def open_as(node: raftha.HaManager, sender: int) -> socket.socket:
    """Connect to `node` in plain text and say hello as `sender`, as any local user can."""
    config = node.config
    stranger = socket.create_connection(address_of(node), 10)
    stranger.settimeout(10)
    cluster_id, name = node.get_status().cluster_id, config.cluster_name
    hello = Hello(
        PROTOCOL_VERSION, cluster_id, sender, config.node_id, sender, "", cluster_name=name
    )
    stranger.sendall(encode(hello))
    assert stranger.recv(4096)
    return stranger


def test_a_stranger_in_plain_mode_neither_deposes_nor_leads_nor_writes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = dict(enumerate(free_addresses(3), start=1))
    # A long timeout: a pause of this process must not cost the followers their leader.
    configs = [make_config(tmp_path, node_id, members) for node_id in members]
    nodes = [
        raftha.HaManager(dataclasses.replace(config, election_timeout_ms=3000))
        for config in configs
    ]
    with contextlib.ExitStack() as stack:
        for node in nodes:
            stack.enter_context(node)
        nodes[0].put(b"key", b"value")
        before = wait_calm(nodes)
        for node in nodes:
            own = node.config.node_id
            stranger = stack.enter_context(open_as(node, 77))
            later = before.term + 1
            for message in (
                VoteRequest(own, 77, later, 1 << 40, later, pre=False, transfer=True),
                Append(own, 77, later, 0, 0, 0, 0, ()),
                Heartbeat(own, 77, later, 0, 0),
                MembershipRequest(own, 77, 77, True, "127.0.0.1:9", "primary", False, False),
                Forward(own, 77, encode_group(Group(0, 1, 0, 1, pack_put(b"key", b"theirs")))),
                VoteRequest(own, 77, (1 << 63) - 1, 1 << 40, 1, pre=False, transfer=True),
            ):
                stranger.sendall(encode(message))
            while stranger.recv(4096):
                pass  # The last message closes the connection.
        wait_until(lambda: caplog.text.count("is far beyond this node's term") == 3, "not refused")
        assert [node.get(b"key") for node in nodes] == [b"value"] * 3
        after = wait_calm(nodes)
        assert (after.term, after.leader_id) == (before.term, before.leader_id)
        assert {replica.node_id for replica in after.replicas} == {1, 2, 3}


def wait_calm(nodes: list[raftha.HaManager]) -> raftha.HaStatus:
    """Wait until all nodes follow one leader in one term; the first one's status."""

    def is_calm() -> bool:
        statuses = [node.get_status() for node in nodes]
        return len({(s.term, s.leader_id) for s in statuses}) == 1 and bool(statuses[0].leader_id)

    wait_until(is_calm, "the nodes don't agree on a leader")
    return nodes[0].get_status()


def make_late(folder: Path, scratch: Path) -> Made:
    made = make_node(folder / "ca", 9, scratch / "late")
    expire(made, folder / "ca")
    return made


def test_a_node_does_not_start_with_the_certificate_of_another(
    tmp_path: Path, made: dict[int, Made]
) -> None:
    manager = make_managers(tmp_path, {**made, 1: made[2]})[0]
    with pytest.raises(ConfigError, match="is for raftha://orders/node/2, this node is"):
        manager.start()
    assert not (tmp_path / "1" / "state").exists()


def test_a_cluster_of_processes_speaks_tls(tmp_path: Path) -> None:
    settings = {"cluster_name": "ü b"}
    with LocalCluster(nodes=3, tls=True, settings=settings, folder=tmp_path) as cluster:
        leader = cluster.wait_leader()
        cluster.call(leader, "SET", "key", "value")
        cluster.kill(leader)
        assert cluster.call(cluster.wait_leader(), "GET", "key") == b"value"
        assert "days_left=" in cluster.log_path(leader).read_text()


def test_peers_contexts_are_of_the_strictest_kind(made: dict[int, Made]) -> None:
    tls = peer_tls(made[1])
    for context in (tls.server, tls.client):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
        assert context.verify_mode == ssl.CERT_REQUIRED
