"""A connection of the reference server: order, pipelining, transactions, and flow control.

The manager is a fake whose futures the test completes, so a test can choose any order of events.
"""

from __future__ import annotations

import asyncio

import pytest

from raftha.client.resp import pack_request
from raftha.errors import Indeterminate, InvalidRequest, Overloaded, Unavailable
from raftha.server import access
from raftha.server.connection import (
    LARGE_REPLIES_MAX,
    RUN_KEYS_MAX,
    WAITING_BYTES_MAX,
    WAITING_MAX,
)
from raftha.server.transaction import QUEUED_KEYS_MAX
from tests.support.scene import Scene, Script, play, receipt


def test_replies_come_in_the_order_of_requests() -> None:
    async def script(scene: Scene) -> None:
        await scene.send("PING", "SET a 1", "INCR n", "PING")
        assert scene.take() == b"+PONG\r\n"
        await scene.answer(1, receipt(7))
        assert scene.take() == b""
        await scene.answer(0, receipt())
        assert scene.take() == b"+OK\r\n:7\r\n+PONG\r\n"

    play(script)


def test_writes_follow_each_other_without_waiting() -> None:
    async def script(scene: Scene) -> None:
        await scene.send("SET a 1", "SET a 2", "INCR a")
        assert scene.ha.kinds() == ["put", "put", "incrby"]

    play(script)


def test_with_a_lease_reads_of_one_key_are_answered_at_once_in_their_turn() -> None:
    async def script(scene: Scene) -> None:
        scene.ha.lease = {b"k": b"v"}
        await scene.send("GET k", "EXISTS k", "GET none", "PING")
        assert scene.take() == b"$1\r\nv\r\n:1\r\n$-1\r\n+PONG\r\n"
        await scene.send("SET k 1", "GET k", "MGET k none", "GET k")
        assert scene.ha.kinds() == ["put"], "a read waits for the writes before it"
        scene.ha.lease[b"k"] = b"1"
        await scene.answer(0, receipt())
        assert scene.take() == b"+OK\r\n$1\r\n1\r\n"
        assert scene.ha.kinds() == ["put", "get_each"], "several keys are read as of one moment"
        await scene.answer(1, [[b"1", None], [b"1"]])
        assert scene.take() == b"*2\r\n$1\r\n1\r\n$-1\r\n$1\r\n1\r\n"

    play(script)


def test_reads_by_lease_give_other_connections_their_turn() -> None:
    async def script(scene: Scene) -> None:
        scene.ha.lease = {b"k": b"v"}
        await scene.send(*["GET k"] * (2 * RUN_KEYS_MAX))
        assert scene.take() == b"$1\r\nv\r\n" * (2 * RUN_KEYS_MAX)
        assert scene.transport.writes == 2

    play(script)


def test_a_read_waits_for_the_writes_before_it_and_a_write_for_the_reads() -> None:
    async def script(scene: Scene) -> None:
        await scene.send("SET a 1", "SET a 2", "GET a", "SET a 3")
        assert scene.ha.kinds() == ["put", "put"]
        await scene.answer(1, receipt())
        assert scene.ha.kinds() == ["put", "put"]
        await scene.answer(0, receipt())
        assert scene.ha.kinds() == ["put", "put", "get_each"]
        await scene.answer(2, [[b"2"]])
        assert scene.ha.kinds() == ["put", "put", "get_each", "put"]
        assert scene.take() == b"+OK\r\n+OK\r\n$1\r\n2\r\n"

    play(script)


def test_neighbouring_reads_are_one_fetch_and_one_write() -> None:
    async def script(scene: Scene) -> None:
        await scene.send("GET a", "MGET b c", "EXISTS d e")
        assert [what for _, what, _ in scene.ha.asked] == [[[b"a"], [b"b", b"c"], [b"d", b"e"]]]
        await scene.answer(0, [[b"1"], [None, b"3"], [b"4", None]])
        assert scene.take() == b"$1\r\n1\r\n*2\r\n$-1\r\n$1\r\n3\r\n:1\r\n"
        assert scene.transport.writes == 1

    play(script)


NO_MAJORITY = Unavailable("no majority")


def test_an_error_of_a_fetch_is_the_reply_to_each_of_its_reads() -> None:
    async def script(scene: Scene) -> None:
        await scene.send("GET a", "MGET b c", "EXISTS d", "PING")
        await scene.answer(0, NO_MAJORITY)
        assert scene.take() == b"-UNAVAILABLE no majority\r\n" * 3 + b"+PONG\r\n"

    play(script)


def test_reads_that_the_node_refuses_at_once_have_a_reply_each() -> None:
    async def script(scene: Scene) -> None:
        scene.ha.refusal = Overloaded("full")
        await scene.send("GET a", "GET b", "PING")
        assert scene.take() == b"-OVERLOADED full\r\n" * 2 + b"+PONG\r\n"

    play(script)


def test_a_read_that_is_too_large_leaves_its_neighbours_alone() -> None:
    async def script(scene: Scene) -> None:
        await scene.send("GET a", "MGET b c", "GET d")
        await scene.answer(0, [[b"1"], InvalidRequest("too large"), [b"4"]])
        assert scene.take() == b"$1\r\n1\r\n-ERR too large\r\n$1\r\n4\r\n"

    play(script)


def test_reads_that_a_fetch_has_no_room_for_are_fetched_next() -> None:
    async def script(scene: Scene) -> None:
        await scene.send("GET a", "GET b", "GET c", "SET d 1")
        await scene.answer(0, [[b"1"]])
        assert scene.take() == b"$1\r\n1\r\n"
        assert scene.ha.asked[1][:2] == ("get_each", [[b"b"], [b"c"]])
        scene.connection.pause_writing()
        await scene.answer(1, [[b"2"]])
        assert len(scene.ha.asked) == 2, "more is fetched only once the client takes what there is"
        scene.connection.resume_writing()
        await scene.answer(2, NO_MAJORITY)
        assert scene.take() == b"$1\r\n2\r\n-UNAVAILABLE no majority\r\n"
        assert scene.ha.kinds() == ["get_each"] * 3 + ["put"]

    play(script)


@pytest.mark.parametrize("results", [[], [[b"1"]] * 3, [[b"1", b"2"], [b"3"]]])
def test_a_connection_that_cannot_match_its_replies_is_closed(
    results: list[list[bytes]], caplog: pytest.LogCaptureFixture
) -> None:
    async def script(scene: Scene) -> None:
        await scene.send("GET a", "GET b", "PING")
        await scene.answer(0, results)
        assert scene.take() == b""
        assert scene.transport.is_closed

    play(script)
    assert "could not be answered" in caplog.text


def test_a_reply_is_encoded_as_the_protocol_was_when_its_request_came() -> None:
    async def script(scene: Scene) -> None:
        await scene.send("GET a", "HELLO 3", "GET b")
        await scene.answer(0, [[None]])
        await scene.answer(1, [[None]])
        reply = scene.take()
        assert reply.startswith(b"$-1\r\n%") and reply.endswith(b"_\r\n")

    play(script)


def test_a_task_waits_for_all_before_it_and_all_after_it_wait() -> None:
    async def script(scene: Scene) -> None:
        await scene.send("SET a 1", "DBSIZE", "SET b 1")
        assert scene.ha.kinds() == ["put"]
        await scene.answer(0, receipt())
        assert scene.ha.kinds() == ["put", "count"]
        await scene.answer(1, 1)
        assert scene.ha.kinds() == ["put", "count", "put"]
        assert scene.take() == b"+OK\r\n:1\r\n"

    play(script)


def test_an_error_takes_its_place_among_the_replies() -> None:
    async def script(scene: Scene) -> None:
        await scene.send("SET a 1", "NONSENSE", "GET a", "GET", "GET b")
        await scene.answer(0, Indeterminate("x"))
        await scene.answer(1, [[b"1"]])
        await scene.answer(2, [[None]])
        replies = scene.take().split(b"\r\n")
        assert replies[0] == b"-INDETERMINATE x"
        assert replies[1].startswith(b"-ERR unknown")
        assert replies[2:4] == [b"$1", b"1"]
        assert replies[4].startswith(b"-ERR wrong number")
        assert replies[5] == b"$-1"

    play(script)


def test_a_write_that_is_refused_at_once_keeps_its_place() -> None:
    async def script(scene: Scene) -> None:
        await scene.send("SET a 1")
        scene.ha.refusal = Overloaded("full")
        await scene.send("SET b 1")
        assert scene.take() == b""
        await scene.answer(0, receipt())
        assert scene.take() == b"+OK\r\n-OVERLOADED full\r\n"

    play(script)


def test_a_transaction_is_queued_and_executed_as_one() -> None:
    async def script(scene: Scene) -> None:
        await scene.send("MULTI", "SET a 1", "GET a", "DECRBY a 2", "EXEC")
        assert scene.take() == b"+OK\r\n" + b"+QUEUED\r\n" * 3
        _, command, _ = scene.ha.asked[0]
        calls = (("set", b"a", b"1", "", False), ("get", b"a"), ("incrby", b"a", -2))
        assert command[1:] == ("exec", calls)
        await scene.answer(0, receipt(["OK", b"1", {"error": "ERR x"}]))
        assert scene.take() == b"*3\r\n+OK\r\n$1\r\n1\r\n-ERR x\r\n"

    play(script)


@pytest.mark.parametrize(
    "mistake", ["NONSENSE", "GET", "SET a b NX XX", "DBSIZE", "PING", "SELECT 0"]
)
def test_a_transaction_with_a_mistake_is_not_executed(mistake: str) -> None:
    async def script(scene: Scene) -> None:
        await scene.send("MULTI", "SET a 1", mistake, "EXEC", "EXEC")
        replies = scene.take().split(b"\r\n")
        assert replies[2].startswith(b"-ERR")
        assert replies[3] == b"-EXECABORT Transaction discarded because of previous errors."
        assert replies[4] == b"-ERR EXEC without MULTI"
        assert not scene.ha.asked

    play(script)


def test_multi_discard_and_empty_exec() -> None:
    async def script(scene: Scene) -> None:
        await scene.send(
            "DISCARD", "MULTI", "MULTI", "SET a 1", "DISCARD", "MULTI", "EXEC", "MULTI"
        )
        replies = scene.take().split(b"\r\n")
        assert replies[0] == b"-ERR DISCARD without MULTI"
        assert replies[2] == b"-ERR MULTI calls can not be nested"
        assert replies[3:] == [b"+QUEUED", b"+OK", b"+OK", b"*0", b"+OK", b""]
        assert not scene.ha.asked

    play(script)


def test_quit_answers_what_came_before_and_drops_what_came_after() -> None:
    async def script(scene: Scene) -> None:
        await scene.send("SET a 1", "QUIT", "SET b 1")
        assert scene.ha.kinds() == ["put"]
        assert not scene.transport.is_closed
        await scene.answer(0, receipt())
        assert scene.take() == b"+OK\r\n+OK\r\n"
        assert scene.transport.is_closed

    play(script)


def test_malformed_requests_end_the_connection_after_earlier_replies() -> None:
    async def script(scene: Scene) -> None:
        await scene.send("SET a 1")
        scene.connection.data_received(b"*999999999\r\n")
        scene.connection.data_received(pack_request(["PING"]))
        await scene.answer(0, receipt())
        assert scene.take() == b"+OK\r\n-ERR Protocol error: invalid multibulk length\r\n"
        assert scene.transport.is_half_closed
        scene.connection.data_received(pack_request(["PING"]))
        assert scene.take() == b""
        assert not scene.connection.eof_received()

    play(script)


def test_a_faulty_client_that_does_not_hang_up_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raftha.server.connection.LINGER_S", 0.0)

    async def script(scene: Scene) -> None:
        scene.connection.data_received(b"*999999999\r\n")
        await asyncio.sleep(0.01)
        assert scene.transport.is_closed

    play(script)


def test_end_of_input_ends_the_connection_after_the_last_reply() -> None:
    async def script(scene: Scene) -> None:
        await scene.send("GET a")
        scene.connection.eof_received()
        assert not scene.transport.is_closed
        await scene.answer(0, [[b"1"]])
        assert scene.take() == b"$1\r\n1\r\n"
        assert scene.transport.is_closed

    play(script)


def test_reading_pauses_while_many_requests_wait() -> None:
    async def script(scene: Scene) -> None:
        await scene.send(*["SET a 1"] * (WAITING_MAX + 1))
        assert len(scene.ha.asked) == WAITING_MAX
        assert not scene.transport.is_reading
        for position in range(WAITING_MAX):
            scene.ha.answer(position, receipt())
        await scene.turn()
        assert len(scene.ha.asked) == WAITING_MAX + 1
        assert scene.transport.is_reading
        await scene.answer(WAITING_MAX, receipt())
        assert scene.take() == b"+OK\r\n" * (WAITING_MAX + 1)

    play(script)


def test_reading_pauses_while_many_bytes_wait() -> None:
    async def script(scene: Scene) -> None:
        value = bytes(WAITING_BYTES_MAX // 2)
        await scene.send((b"SET", b"a", value))
        assert scene.transport.is_reading
        await scene.send((b"SET", b"b", value))
        assert not scene.transport.is_reading
        await scene.answer(0, receipt())
        await scene.answer(1, receipt())
        assert scene.transport.is_reading

    play(script)


def test_only_so_many_large_replies_are_to_come() -> None:
    """The reply to each may have some MiB, and takes memory as soon as it is done."""

    async def script(scene: Scene) -> None:
        await scene.send(*["MULTI", "GET a", "EXEC"] * (LARGE_REPLIES_MAX + 5))
        assert scene.ha.kinds() == ["exec"] * LARGE_REPLIES_MAX
        for position in range(LARGE_REPLIES_MAX):
            await scene.answer(position, receipt([b"value"]))
        assert scene.ha.kinds() == ["exec"] * (LARGE_REPLIES_MAX + 5)

    play(script)


def test_requests_answered_at_once_leave_other_connections_their_turn() -> None:
    async def script(scene: Scene) -> None:
        count = 3 * WAITING_MAX
        scene.connection.data_received(pack_request(["PING"]) * count)
        assert scene.take() == b"+PONG\r\n" * WAITING_MAX
        await scene.turn()
        assert scene.take() == b"+PONG\r\n" * (count - WAITING_MAX)
        assert scene.transport.is_reading

    play(script)


def test_nothing_is_started_while_the_client_takes_no_replies() -> None:
    async def script(scene: Scene) -> None:
        scene.connection.pause_writing()
        await scene.send("GET a", "PING")
        assert not scene.ha.asked
        scene.connection.resume_writing()
        await scene.turn()
        await scene.answer(0, [[None]])
        assert scene.take() == b"$-1\r\n+PONG\r\n"

    play(script)


def test_a_client_that_takes_no_replies_for_long_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("raftha.server.connection.STALLED_S", 0.0)

    async def script(scene: Scene) -> None:
        scene.connection.pause_writing()
        await asyncio.sleep(0.01)
        assert scene.transport.is_closed

    play(script)


def test_a_lost_connection_leaves_nothing_behind() -> None:
    async def script(scene: Scene) -> None:
        await scene.send("SET a 1", "GET a")
        scene.connection.connection_lost(None)
        await scene.answer(0, Indeterminate("no client is left"))
        assert scene.ha.kinds() == ["put"]
        assert scene.take() == b""
        assert scene.connection.closed.done()

    play(script)


def test_resp3_is_spoken_to_clients_that_ask() -> None:
    async def script(scene: Scene) -> None:
        await scene.send("HELLO 4", "HELLO 3", "CLIENT GETNAME", "CONFIG GET save", "HELLO 2")
        replies = scene.take()
        assert replies.startswith(b"-NOPROTO unsupported protocol version\r\n%7\r\n")
        assert b"*0\r\n_\r\n%1\r\n$4\r\nsave\r\n$0\r\n\r\n*14\r\n" in replies

    play(script)


# ---------------------------------------------------------------- the token

TOKEN = "correct horse battery staple"
NOAUTH = b"-NOAUTH Authentication required.\r\n"
WRONGPASS = b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"


def play_with_token(script: Script) -> None:
    async def main() -> None:
        scene = Scene(TOKEN)
        await script(scene)
        scene.connection.connection_lost(None)

    asyncio.run(main())


@pytest.mark.parametrize(
    "request_",
    ["GET a", "SET a 1", "INFO", "MULTI", "EXEC", "FLUSHALL", "RAFTHA STATUS", "CLIENT ID", "get"],
)
def test_before_auth_nothing_but_a_few_commands_is_carried_out(request_: str) -> None:
    async def script(scene: Scene) -> None:
        await scene.send(request_)
        assert scene.take() == NOAUTH
        assert not scene.ha.asked

    play_with_token(script)


def test_ping_and_quit_need_no_token() -> None:
    async def script(scene: Scene) -> None:
        await scene.send("PING", "QUIT")
        assert scene.take() == b"+PONG\r\n+OK\r\n"
        assert scene.transport.is_closed

    play_with_token(script)


@pytest.mark.parametrize(
    "request_",
    [
        (b"AUTH", TOKEN.encode()),
        (b"auth", b"default", TOKEN.encode()),
        (b"HELLO", b"2", b"AUTH", b"default", TOKEN.encode()),
        (b"HELLO", b"2", b"setname", b"x", b"auth", b"default", TOKEN.encode()),
    ],
)
def test_a_client_that_shows_the_token_stays_in(request_: tuple[bytes, ...]) -> None:
    async def script(scene: Scene) -> None:
        await scene.send("GET a", request_, "SET a 1")
        assert scene.take().startswith(NOAUTH)
        await scene.send((b"AUTH", b"wrong"))
        await scene.answer(0, receipt())
        assert scene.take().endswith(b"+OK\r\n" + WRONGPASS)
        await scene.send("SET a 2")
        assert scene.ha.kinds() == ["put", "put"]

    play_with_token(script)


@pytest.mark.parametrize(
    "request_",
    [
        (b"AUTH", b"wrong"),
        (b"AUTH", b""),
        (b"AUTH", TOKEN[:-1].encode()),
        (b"AUTH", b"admin", TOKEN.encode()),
        (b"HELLO", b"3", b"AUTH", b"default", b"wrong"),
    ],
)
def test_a_wrong_token_or_user_is_wrongpass(request_: tuple[bytes, ...]) -> None:
    async def script(scene: Scene) -> None:
        await scene.send("GET a", request_)
        assert scene.take() == NOAUTH + WRONGPASS

    play_with_token(script)


def test_hello_alone_is_not_enough_and_changes_nothing() -> None:
    async def script(scene: Scene) -> None:
        await scene.send("HELLO 3 SETNAME x", "HELLO")
        assert scene.take().count(b"-NOAUTH HELLO must be called with AUTH") == 2
        assert scene.connection.name == b""
        assert scene.connection.null == b"$-1\r\n"

    play_with_token(script)


def test_without_a_token_auth_is_an_error_as_in_redis() -> None:
    async def script(scene: Scene) -> None:
        await scene.send("AUTH x", "HELLO 2 AUTH default x", "HELLO 2 FOO")
        first, second, third, _ = scene.take().split(b"\r\n")
        assert first == second == b"-ERR AUTH <password> called without any password configured."
        assert third.startswith(b"-ERR HELLO takes")

    play(script)


def test_a_client_that_shows_no_token_in_time_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "AUTH_TIMEOUT_S", 0.02)

    async def script(scene: Scene) -> None:
        await scene.send("PING")
        async with asyncio.timeout(10):
            while not scene.transport.is_closed:  # noqa: ASYNC110 - a fake has no event
                await asyncio.sleep(0.005)

    play_with_token(script)


def test_a_transaction_whose_commands_name_too_many_keys_is_refused() -> None:
    async def script(scene: Scene) -> None:
        reads = ["EXISTS " + "a " * 1000] * (QUEUED_KEYS_MAX // 1000)
        await scene.send("MULTI", *reads)
        assert scene.take() == b"+OK\r\n" + b"+QUEUED\r\n" * len(reads)
        await scene.send("GET a", "EXEC")
        refused, aborted, _ = scene.take().split(b"\r\n")
        assert refused == b"-ERR the commands of a transaction name at most 10000 keys"
        assert aborted.startswith(b"-EXECABORT")
        assert scene.ha.kinds() == []

    play(script)
