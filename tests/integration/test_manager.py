"""Both managers: three nodes in this process, over real sockets and disks."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import raftha
from raftha.config import MIB
from raftha.net.wire import Hello, Refusal, encode
from raftha.storage.state.commands import pack_call, pack_put
from raftha.storage.state.sessions import receipts
from raftha.version import PROTOCOL_VERSION
from tests.support.conditions import wait_until
from tests.support.nodes import free_addresses, make_config


class Bank(raftha.StateMachine):
    """Accounts with a balance each."""

    @raftha.command
    def deposit(self, txn: raftha.Transaction, account: bytes, amount: int) -> int:
        balance = int(txn.get(account) or b"0") + amount
        txn.put(account, b"%d" % balance)
        return balance

    @raftha.command
    def withdraw(self, txn: raftha.Transaction, account: bytes, amount: int) -> int:
        balance = int(txn.get(account) or b"0") - amount
        txn.put(account, b"%d" % balance)
        if balance < 0:
            raise ValueError(f"{account.decode()} lacks {-balance}")
        return balance


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[raftha.HaManager]]:
    folder = tmp_path_factory.mktemp("cluster")
    members = dict(enumerate(free_addresses(3), start=1))
    managers = [
        raftha.HaManager(make_config(folder, node_id, members), state_machine=Bank())
        for node_id in members
    ]
    for manager in managers:
        manager.start()
    yield managers
    for manager in managers:
        manager.stop()


def follower_of(nodes: list[raftha.HaManager]) -> raftha.HaManager:
    nodes[0].put(b"leader", b"wanted")
    leader = nodes[0].get_status().leader_id
    return next(node for node in nodes if node.config.node_id != leader)


@pytest.mark.slow
def test_a_write_through_any_node_is_read_through_every_node(
    nodes: list[raftha.HaManager],
) -> None:
    for writer in nodes:
        key = b"from-%d" % writer.config.node_id
        receipt = writer.put(key, b"value")
        assert receipt
        assert receipt.term >= 1
        assert [reader.get(key) for reader in nodes] == [b"value"] * 3


def test_sequences_count_commands_without_a_gap(nodes: list[raftha.HaManager]) -> None:
    receipts = [node.put(b"counted", b"%d" % i) for i, node in enumerate(nodes * 3)]
    first = receipts[0].sequence
    assert [receipt.sequence for receipt in receipts] == list(range(first, first + 9))
    assert [r.time_us for r in receipts] == sorted(r.time_us for r in receipts)


def test_delete_says_whether_the_key_existed(nodes: list[raftha.HaManager]) -> None:
    nodes[0].put(b"doomed", b"x")
    assert nodes[1].delete(b"doomed").result is True
    assert nodes[2].delete(b"doomed").result is False
    assert nodes[0].get(b"doomed") is None


def test_compare_and_set_is_false_if_it_did_not_set(nodes: list[raftha.HaManager]) -> None:
    nodes[0].delete(b"cas")
    assert nodes[0].compare_and_set(b"cas", None, b"1")
    assert not nodes[1].compare_and_set(b"cas", None, b"2")
    assert nodes[2].compare_and_set(b"cas", b"1", b"2")
    assert nodes[0].get(b"cas") == b"2"


def test_a_transaction_does_its_operations_or_its_alternative(
    nodes: list[raftha.HaManager],
) -> None:
    nodes[0].put(b"t/a", b"1")
    done = nodes[1].transaction(
        [raftha.Equals(b"t/a", b"1"), raftha.Missing(b"t/b")],
        [raftha.Put(b"t/b", b"2"), raftha.Delete(b"t/a"), raftha.Get(b"t/b")],
    )
    assert done
    assert done.result == [None, True, b"2"]
    refused = nodes[2].transaction(
        [raftha.Exists(b"t/a")], [raftha.Put(b"t/c", b"3")], [raftha.Get(b"t/b")]
    )
    assert not refused
    assert refused.result == [b"2"]
    assert nodes[0].get_many([b"t/a", b"t/b", b"t/c"]) == [None, b"2", None]


def test_scan_goes_both_ways_with_a_limit(nodes: list[raftha.HaManager]) -> None:
    for i in range(5):
        nodes[i % 3].put(b"scan/%d" % i, b"%d" % i)
    start, end = b"scan/", b"scan0"
    keys = [key for key, _ in nodes[0].scan(start, end)]
    assert keys == [b"scan/%d" % i for i in range(5)]
    assert [key for key, _ in nodes[1].scan(start, end, limit=2)] == keys[:2]
    assert [key for key, _ in nodes[2].scan(start, end, limit=2, reverse=True)] == keys[:2:-1]


def test_a_users_command_returns_and_rolls_back_everywhere(nodes: list[raftha.HaManager]) -> None:
    nodes[0].delete(b"alice")
    assert nodes[0].execute("deposit", b"alice", 10).result == 10
    with pytest.raises(raftha.CommandFailed, match="alice lacks 5") as failure:
        nodes[1].execute("withdraw", b"alice", 15)
    assert failure.value.kind == "ValueError"
    assert [node.get(b"alice") for node in nodes] == [b"10"] * 3
    with pytest.raises(raftha.InvalidRequest, match="unknown command 'steal'"):
        nodes[2].execute("steal", b"alice")


def test_digests_of_one_sequence_are_equal_while_writes_go_on(
    nodes: list[raftha.HaManager],
) -> None:
    target = nodes[0].put(b"before", b"digest").sequence + 40
    digests: dict[int, raftha.Digest] = {}

    def ask(node: raftha.HaManager) -> None:
        digests[node.config.node_id] = node.digest(target)

    threads = [threading.Thread(target=ask, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    written = 0
    while any(thread.is_alive() for thread in threads):
        nodes[written % 3].put(b"during-%d" % (written % 50), b"%d" % written)
        written += 1
    for thread in threads:
        thread.join()
    assert written >= 39
    assert {digest.sequence for digest in digests.values()} == {target}
    assert len({digest.hex for digest in digests.values()}) == 1


def test_leadership_moves_to_the_named_node_from_any_node(nodes: list[raftha.HaManager]) -> None:
    asked = follower_of(nodes)
    asked.failover_to(asked.config.node_id)
    assert asked.get_status().is_primary
    asked.put(b"after", b"transfer")
    other = follower_of(nodes)
    other.failover_to(asked.config.node_id)
    with pytest.raises(raftha.TransferFailed, match="not a member"):
        other.failover_to(9)


def test_status_tells_the_log_pointers_in_order(nodes: list[raftha.HaManager]) -> None:
    status = nodes[0].get_status()
    assert status.is_running
    assert status.replica_count == 3
    assert status.first_index <= status.applied_index <= status.commit_index <= status.last_index
    assert [replica.node_id for replica in status.replicas] == [1, 2, 3]


def test_every_node_names_the_same_leader(nodes: list[raftha.HaManager]) -> None:
    nodes[0].put(b"led", b"by one")
    statuses = [node.get_status() for node in nodes]

    def agree() -> bool:
        statuses[:] = [node.get_status() for node in nodes]
        return len({(status.leader_id, status.term) for status in statuses}) == 1

    wait_until(agree, "all know the leader")
    leader, term = statuses[0].leader_id, statuses[0].term
    assert leader in (1, 2, 3)
    assert term >= 1
    assert [status.node_id for status in statuses] == [1, 2, 3]
    assert [status.is_primary for status in statuses] == [i == leader for i in (1, 2, 3)]


def test_a_stale_read_answers_from_this_node(nodes: list[raftha.HaManager]) -> None:
    node = follower_of(nodes)
    node.put(b"own", b"write")
    assert node.get(b"own", consistency="stale") == b"write"
    with pytest.raises(raftha.InvalidRequest, match="consistency"):
        node.get(b"own", consistency="eventual")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "call",
    [
        lambda ha: ha.put(b"", b"x"),
        lambda ha: ha.put(b"k" * 512, b"x"),
        lambda ha: ha.put("text", b"x"),
        lambda ha: ha.put(b"k", "text"),
        lambda ha: ha.put(b"k", bytes(MIB + 1)),
        lambda ha: ha.get(b""),
        lambda ha: ha.put(b"k", b"v", timeout=0),
        lambda ha: ha.put(b"k", b"v", timeout=601),
        lambda ha: ha.scan(limit=1_000_000),
        lambda ha: ha.execute("deposit", object()),
        lambda ha: ha.put(b"k", b"v", timeout="3"),
        lambda ha: ha.digest("abc"),
        lambda ha: ha.digest(-1),
        lambda ha: ha.failover_to(2.0),
        lambda ha: ha.add_replica("4", "127.0.0.1:1"),
        lambda ha: ha.add_replica(4, None),
        lambda ha: ha.remove_replica(-1),
    ],
)
def test_a_request_over_a_limit_is_invalid_and_loses_nothing(
    nodes: list[raftha.HaManager], call: Callable[[raftha.HaManager], object]
) -> None:
    nodes[0].put(b"kept", b"here")
    with pytest.raises(raftha.InvalidRequest):
        call(nodes[0])
    assert nodes[0].get(b"kept") == b"here"


def test_reads_are_bounded_in_bytes_as_well(nodes: list[raftha.HaManager]) -> None:
    keys = [b"large/%d" % i for i in range(17)]
    for key in keys:
        nodes[0].put(key, bytes(MIB))
    assert len(nodes[1].get_many(keys[:16])) == 16
    with pytest.raises(raftha.InvalidRequest, match="ask for fewer keys"):
        nodes[1].get_many(keys)
    for key in keys:
        nodes[0].delete(key)


def test_many_threads_share_one_manager(nodes: list[raftha.HaManager]) -> None:
    nodes[0].delete(b"shared")

    def work(node: raftha.HaManager) -> None:
        for _ in range(25):
            node.execute("deposit", b"shared", 1)

    threads = [threading.Thread(target=work, args=(nodes[i % 3],)) for i in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert nodes[0].get(b"shared") == b"225"


def test_start_and_stop_may_be_repeated(tmp_path: Path) -> None:
    members = {1: free_addresses(1)[0]}
    manager = raftha.HaManager(make_config(tmp_path, 1, members))
    assert manager.get_status().role == "stopped"
    with pytest.raises(raftha.Stopped):
        manager.put(b"a", b"b")
    manager.stop()
    for value in (b"1", b"2"):
        manager.start()
        manager.start()
        previous = manager.get(b"a")
        assert previous == (None if value == b"1" else b"1")
        manager.put(b"a", value)
        manager.stop()
        manager.stop()
        assert manager.get_status().role == "stopped"
        with pytest.raises(raftha.Stopped):
            manager.get(b"a")


def test_without_a_majority_a_call_ends_by_its_deadline_as_not_done(tmp_path: Path) -> None:
    members = dict(enumerate(free_addresses(3), start=1))
    with raftha.HaManager(make_config(tmp_path, 1, members)) as alone:
        with pytest.raises(raftha.Unavailable):
            alone.put(b"a", b"b", timeout=0.2)
        with pytest.raises(raftha.Unavailable):
            alone.get(b"a", timeout=0.2)
        with pytest.raises(raftha.TransferFailed, match="no leader"):
            alone.failover_to(2, timeout=0.2)
        assert alone.get(b"a", consistency="stale") is None


def test_a_second_manager_on_a_directory_is_refused_and_the_first_goes_on(
    tmp_path: Path,
) -> None:
    config = make_config(tmp_path, 1, {1: free_addresses(1)[0]})
    with raftha.HaManager(config) as first:
        first.put(b"a", b"b")
        with pytest.raises(raftha.ConfigError, match="in use"):
            raftha.HaManager(config).start()
        assert first.get(b"a") == b"b"


def test_an_address_that_is_taken_is_a_config_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        members = {1: f"127.0.0.1:{taken.getsockname()[1]}"}
        with pytest.raises(raftha.ConfigError, match="can't listen"):
            raftha.HaManager(make_config(tmp_path, 1, members)).start()
    with raftha.HaManager(make_config(tmp_path, 1, members)) as ha:
        assert ha.put(b"a", b"b")


@pytest.mark.parametrize(
    "greeting",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 64,
        b"\xff" * 64,
        b"\x05\x00\x00\x00hello",
        encode(Hello(PROTOCOL_VERSION, "another cluster", 3, 1, 1, "", cluster_name="raftha")),
        encode(Hello(PROTOCOL_VERSION + 1, "", 3, 1, 1, "", cluster_name="raftha")),
        encode(Refusal("no", False)),
    ],
)
def test_a_stranger_at_the_peer_port_is_turned_away_and_the_node_goes_on(
    nodes: list[raftha.HaManager], greeting: bytes
) -> None:
    host, port = nodes[0].config.members[1].split(":")
    with socket.create_connection((host, int(port)), timeout=10) as stranger:
        stranger.sendall(greeting)
        try:
            while stranger.recv(4096):
                pass
        except ConnectionResetError:
            pass
    assert nodes[0].put(b"still", b"here")


def test_a_client_that_only_connects_does_not_disturb_others(
    nodes: list[raftha.HaManager],
) -> None:
    host, port = nodes[0].config.members[1].split(":")
    silent = [socket.create_connection((host, int(port)), timeout=10) for _ in range(100)]
    assert nodes[0].put(b"still", b"here")
    for each in silent:
        each.close()


def test_commands_over_the_queues_bound_are_overloaded_at_once(tmp_path: Path) -> None:
    members = dict(enumerate(free_addresses(3), start=1))
    config = raftha.HaConfig(
        node_id=1, data_dir=tmp_path, members=members, submit_queue_bytes_max=8 * MIB
    )

    async def fill() -> list[object]:
        async with raftha.aio.HaManager(config) as alone:
            writes = (alone.put(b"%d" % i, bytes(MIB), timeout=0.3) for i in range(10))
            return list(await asyncio.gather(*writes, return_exceptions=True))

    kinds = [type(result) for result in asyncio.run(fill())]
    assert kinds == [raftha.Unavailable] * 7 + [raftha.Overloaded] * 3


def test_answered_calls_leave_nothing_behind(tmp_path: Path) -> None:
    """At tens of thousands of calls a second, checking those of a second takes long."""
    config = make_config(tmp_path, 1, {1: free_addresses(1)[0]})

    async def write() -> None:
        async with raftha.aio.HaManager(config) as ha:
            await ha.put(b"first", b"value")
            futures = [ha.submit(pack_put(b"key", b"value")) for _ in range(100)]
            await asyncio.gather(*futures)
            kept = weakref.WeakSet(futures)
            del futures
            await ha.put(b"last", b"value")
            assert len(kept) == 0

    asyncio.run(write())


def test_the_asynchronous_manager_does_what_the_blocking_one_does(tmp_path: Path) -> None:
    config = make_config(tmp_path, 1, {1: free_addresses(1)[0]})

    async def use() -> None:
        async with raftha.aio.HaManager(config, state_machine=Bank()) as ha:
            receipts = await asyncio.gather(*(ha.put(b"k%d" % i, b"v") for i in range(50)))
            assert sorted(r.sequence for r in receipts) == list(range(1, 51))
            assert await ha.count() == 50
            assert await ha.get(b"k7") == b"v"
            assert (await ha.delete(b"k7")).result is True
            assert await ha.get_many([b"k7", b"k8"]) == [None, b"v"]
            assert not await ha.compare_and_set(b"k8", b"other", b"w")
            assert (await ha.execute("deposit", b"bob", 3)).result == 3
            assert (await ha.transaction([], [raftha.Get(b"bob")])).result == [b"3"]
            assert len(await ha.scan(b"k", b"l", limit=10)) == 10
            assert (await ha.digest()).keys == 50
            assert (await ha.get_status()).is_primary
            with pytest.raises(raftha.CommandFailed):
                await ha.execute("withdraw", b"bob", 4)
            await ha.failover_to(1)

    asyncio.run(use())


def test_a_group_sent_twice_under_its_number_is_applied_once(tmp_path: Path) -> None:
    config = make_config(tmp_path, 1, {1: free_addresses(1)[0]})

    async def use() -> None:
        async with raftha.aio.HaManager(config, state_machine=Bank()) as ha:
            session = await ha.open_session()
            packed = [pack_call("deposit", (b"carol", 1))]
            outcomes = [await ha.submit_once(session, 1, 1, packed) for _ in range(3)]
            first = receipts(outcomes[0])
            assert [receipts(outcome) for outcome in outcomes] == [first] * 3
            await ha.submit_once(session, 2, 2, packed)
            assert await ha.get(b"carol") == b"2"

    asyncio.run(use())


@pytest.mark.parametrize(
    ("session", "number", "floor", "packed"),
    [
        (0, 1, 1, pack_put(b"a", b"b")),
        (-1, 1, 1, pack_put(b"a", b"b")),
        (1 << 64, 1, 1, pack_put(b"a", b"b")),
        (1, 0, 0, pack_put(b"a", b"b")),
        (1, 1, 2, pack_put(b"a", b"b")),
        (1, 1, 1, b""),
        (1, 1, 1, b"\xc1"),
        (1, 1, 1, b"\x01"),
        (1, 1, 1, pack_put(b"a", b"b") * 2),
        (1, 1, 1, pack_put(b"a", bytes(4 * MIB)) + bytes(MIB)),
    ],
)
def test_a_malformed_group_or_command_is_refused_before_the_node_gets_it(
    tmp_path: Path, session: int, number: int, floor: int, packed: bytes
) -> None:
    config = make_config(tmp_path, 1, {1: free_addresses(1)[0]})

    async def use() -> None:
        async with raftha.aio.HaManager(config) as ha:
            with pytest.raises(raftha.InvalidRequest):
                await ha.submit_once(session, number, floor, [packed])
            if packed != pack_put(b"a", b"b"):
                with pytest.raises(raftha.InvalidRequest):
                    await ha.submit(packed)
            assert await ha.put(b"a", b"b")

    asyncio.run(use())


def test_an_error_in_the_middle_of_a_turn_leaves_no_caller_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Operations that were just taken out of the queues are in no queue when the node ends."""
    config = make_config(tmp_path, 1, {1: free_addresses(1)[0]})

    def explode(*_: object) -> None:
        raise AssertionError("planted")

    async def use() -> None:
        async with raftha.aio.HaManager(config) as ha:
            await ha.put(b"a", b"b")
            monkeypatch.setattr("raftha.node.submissions.receipts", explode)
            calls = [ha.put(b"a", b"%d" % i) for i in range(9)]
            async with asyncio.timeout(10):
                results = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(result) for result in results} == {raftha.Disconnected}
            assert (await ha.get_status()).role == "failed"

    asyncio.run(use())


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, OSError, json.JSONDecodeError])
def test_whatever_a_command_raises_fails_that_command_only(
    tmp_path: Path, kind: type[BaseException]
) -> None:
    """Before and after a restart, which applies the entry again."""

    class Rude(raftha.StateMachine):
        @raftha.command
        def leave(self, txn: raftha.Transaction) -> None:
            raise kind("planned", "", 0) if kind is json.JSONDecodeError else kind("planned")

    config = make_config(tmp_path, 1, {1: free_addresses(1)[0]})
    for value in (b"before", b"after a restart"):
        with raftha.HaManager(config, state_machine=Rude()) as ha:
            with pytest.raises(raftha.CommandFailed) as failure:
                ha.execute("leave")
            assert failure.value.kind == kind.__name__
            ha.put(b"key", value)
            assert ha.get(b"key") == value


def test_a_start_that_was_cancelled_leaves_nothing_behind(tmp_path: Path) -> None:
    config = make_config(tmp_path, 1, {1: free_addresses(1)[0]})

    async def use() -> None:
        ha = raftha.aio.HaManager(config)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await ha.start()
        await ha.stop()
        while True:
            try:
                await asyncio.gather(ha.start(), ha.start())
                break
            except raftha.ConfigError:  # Until the orphan has been stopped, it holds the lock.
                await asyncio.sleep(0.01)
        assert await ha.put(b"a", b"b")
        await ha.stop()

    asyncio.run(use())


def test_an_invalid_name_is_a_config_error(tmp_path: Path) -> None:
    config = raftha.HaConfig(
        node_id=1, data_dir=tmp_path, members={1: "a" * 70 + ".x:7901"}, insecure=True
    )
    with pytest.raises(raftha.ConfigError, match="can't listen"):
        raftha.HaManager(config).start()


def test_a_clients_group_in_a_nodes_session_is_refused(tmp_path: Path) -> None:
    config = make_config(tmp_path, 1, {1: free_addresses(1)[0]})

    async def use() -> None:
        async with raftha.aio.HaManager(config) as ha:
            await ha.put(b"a", b"1")
            for guess in ((2 << 16), (2 << 16) + 1, 1, 2):
                with pytest.raises(raftha.RafthaError):
                    receipts(await ha.submit_once(guess, 2, 1, [pack_put(b"a", b"2")]))
            await ha.put(b"b", b"1")
            assert await ha.get_many([b"a", b"b"]) == [b"1", b"1"]

    asyncio.run(use())


def test_a_failed_node_can_be_started_again(tmp_path: Path) -> None:
    class Fragile(raftha.StateMachine):
        @raftha.command(trial=False)
        def fail(self, txn: raftha.Transaction) -> None:
            if is_fragile:
                raise MemoryError("planned: memory is not the command's fault")

    is_fragile = True
    config = make_config(tmp_path, 1, {1: free_addresses(1)[0]})
    with raftha.HaManager(config, state_machine=Fragile()) as ha:
        with pytest.raises((raftha.Disconnected, raftha.Stopped)):
            ha.execute("fail")
        assert ha.get_status().role == "failed"
        assert "MemoryError" in ha.get_status().failure
        is_fragile = False
        ha.start()
        assert ha.put(b"a", b"b")


@pytest.mark.parametrize("args", [("[" * 50_000 + "]" * 50_000,), ("[1]", 1 << 60)])
def test_a_call_that_would_end_every_node_is_refused_and_they_go_on(
    tmp_path: Path, args: tuple[Any, ...]
) -> None:
    class Documents(raftha.StateMachine):
        @raftha.command
        def store(self, txn: raftha.Transaction, text: str, size: int = 0) -> int:
            txn.put(b"text", text.encode() + b" " * size)
            return len(json.loads(text))

    config = make_config(tmp_path, 1, {1: free_addresses(1)[0]})
    with raftha.HaManager(config, state_machine=Documents()) as ha:
        assert ha.execute("store", "[1, 2]").result == 2
        with pytest.raises(raftha.InvalidRequest, match="in a trial"):
            ha.execute("store", *args)
        assert ha.get(b"text") == b"[1, 2]"
        assert ha.get_status().is_primary


def test_acknowledged_writes_survive_the_end_of_the_process(tmp_path: Path) -> None:
    """A restart replays the log from the last checkpoint, after a process that closed nothing."""
    config = make_config(tmp_path, 1, {1: free_addresses(1)[0]})
    with raftha.HaManager(config) as ha:
        for i in range(20):
            ha.put(b"k%d" % i, b"%d" % i)
        ha.digest()
        last = ha.put(b"k5", b"later")
    with raftha.HaManager(config) as ha:
        assert ha.get(b"k5") == b"later"
        assert ha.count() == 20
        assert ha.get_status().sequence == last.sequence
