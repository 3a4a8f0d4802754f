"""Requests that clients don't finish: what all connections together may hold."""

from __future__ import annotations

from collections import deque
from typing import Any

from raftha.client.resp import RequestParser
from raftha.server.requests import SMALL_BYTES, SPARED_S, RequestBound

MIB = 1 << 20


class Held:
    """A parser that holds so much."""

    def __init__(self, held_bytes: int) -> None:
        self.held_bytes = held_bytes


class Client:
    def __init__(self, clients: set[Any], held_bytes: int) -> None:
        self.parser = Held(held_bytes)
        self.is_open = True
        self._clients = clients
        clients.add(self)

    def abort(self) -> None:
        self.is_open = False
        self._clients.discard(self)


def test_the_oldest_incomplete_requests_go_when_all_are_too_large() -> None:
    clients = set[Any]()
    bound = RequestBound(clients, 100 * MIB)
    old = [Client(clients, 4 * MIB) for _ in range(20)]
    small = [Client(clients, SMALL_BYTES) for _ in range(1000)]
    bound.look(0.0)
    bound.look(10.0)
    assert all(client.is_open for client in old), "they are within the limit"
    young = [Client(clients, 4 * MIB) for _ in range(10)]
    bound.look(20.0)
    assert sum(client.is_open for client in old) == 2, "half of the limit is free again"
    assert all(client.is_open for client in (*young, *small))


def test_a_request_that_has_just_begun_stays() -> None:
    clients = set[Any]()
    bound = RequestBound(clients, 100 * MIB)
    young = [Client(clients, 4 * MIB) for _ in range(50)]
    bound.look(0.0)
    bound.look(0.9 * SPARED_S)
    assert all(client.is_open for client in young)
    bound.look(SPARED_S)
    assert sum(client.is_open for client in young) == 12


def test_a_client_that_finishes_its_request_begins_again() -> None:
    clients = set[Any]()
    bound = RequestBound(clients, 100 * MIB)
    busy, idle = Client(clients, 4 * MIB), [Client(clients, 4 * MIB) for _ in range(24)]
    bound.look(0.0)
    busy.parser.held_bytes = 0
    bound.look(5.0)
    busy.parser.held_bytes = 5 * MIB
    bound.look(10.0)
    assert busy.is_open
    assert sum(client.is_open for client in idle) < 24


def test_a_parser_says_what_it_holds() -> None:
    parser, requests = RequestParser(), deque[Any]()
    parser.feed(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$100000\r\n" + bytes(90_000), requests)
    assert 90_000 <= parser.held_bytes < 90_100
    cleared = RequestParser()
    cleared.feed(b"*2\r\n$3\r\nGET\r\n$100000\r\n" + bytes(90_000), requests)
    cleared.clear()
    assert cleared.held_bytes == 0
    parser.feed(bytes(10_000) + b"\r\n", requests)
    assert (parser.held_bytes, len(requests)) == (0, 1)
