"""Pipelined reads on real processes: one reply for each request, its own, also when reads fail."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

import hiredis
import pytest

from raftha.client import Client
from raftha.client.resp import pack_request
from raftha.errors import Unavailable
from raftha.testing import LocalCluster

pytestmark = pytest.mark.slow

KEYS = [b"a", b"b", b"c", b"d", b"e"]
MEGABYTE = bytes(1_000_000)


def value_of(key: bytes) -> bytes:
    return b"value of " + key


def pipeline(
    connection: socket.socket, reader: hiredis.Reader, requests: Sequence[tuple[bytes, ...]]
) -> list[Any]:
    """Send all at once and read as many replies; TimeoutError if fewer come."""
    connection.sendall(b"".join(map(pack_request, requests)))
    replies: list[Any] = []
    while len(replies) < len(requests):
        reply = reader.gets()
        if reply is Ellipsis:
            data = connection.recv(1 << 20)
            assert data, "the connection was closed"
            reader.feed(data)
        else:
            replies.append(reply)
    return replies


def first_failure(
    connection: socket.socket, reader: hiredis.Reader, gets: Sequence[tuple[bytes, bytes]]
) -> list[Any]:
    """Repeat the pipeline until all of it fails; a read that still succeeds has its own value."""
    while True:
        replies = pipeline(connection, reader, gets)
        for reply, (_, key) in zip(replies, gets, strict=True):
            assert isinstance(reply, hiredis.ReplyError) or reply == value_of(key)
        if all(isinstance(reply, hiredis.ReplyError) for reply in replies):
            return replies


def test_pipelined_reads_have_a_reply_each_whatever_happens() -> None:
    """Large neighbours, then no majority, then a majority again: on one connection."""
    with LocalCluster(3, settings={"request_timeout_s": 1.0}) as cluster:
        leader = cluster.wait_leader()
        for key in KEYS:
            cluster.call(leader, "SET", key, value_of(key))
        cluster.call(leader, "SET", "big", MEGABYTE)
        host, port = cluster.addresses[leader].split(":")
        with socket.create_connection((host, int(port)), 30) as connection:
            reader = hiredis.Reader(notEnoughData=Ellipsis)
            gets = [(b"GET", key) for key in KEYS]
            mixed = [(b"GET", b"big")] * 17 + gets + [(b"MGET", *[b"big"] * 17)] + gets
            replies = pipeline(connection, reader, mixed)
            values = [value_of(key) for key in KEYS]
            assert replies[:17] == [MEGABYTE] * 17
            assert replies[17:22] == values
            assert "16777216 bytes" in str(replies[22]), "one read over the limit fails alone"
            assert replies[23:] == values

            others = [node for node in cluster.node_ids if node != leader]
            for node in others:
                cluster.pause(node)
            # The first reads may succeed: the others' replies may have left before the pause.
            failed = first_failure(connection, reader, gets[:3])
            assert len(failed) == 3
            for node in others:
                cluster.resume(node)
            cluster.wait_leader()
            assert pipeline(connection, reader, gets) == values


def test_the_client_matches_replies_after_reads_without_a_majority() -> None:
    async def read(address: str, others: Sequence[int], cluster: LocalCluster) -> None:
        async with Client([address], timeout_s=30) as client:
            for key in KEYS:
                await client.call("SET", key, value_of(key))
            for node in others:
                cluster.pause(node)
            outcomes: list[Any] = []
            while [type(outcome) for outcome in outcomes] != [Unavailable] * 3:
                calls = [client.call("GET", key) for key in KEYS[:3]]
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
                for outcome, key in zip(outcomes, KEYS, strict=False):
                    assert isinstance(outcome, Unavailable) or outcome == value_of(key)
            for node in others:
                cluster.resume(node)
            await asyncio.to_thread(cluster.wait_leader)
            calls = [client.call("GET", key) for key in KEYS]
            assert await asyncio.gather(*calls) == [value_of(key) for key in KEYS]

    with LocalCluster(3, settings={"request_timeout_s": 1.0}) as cluster:
        leader = cluster.wait_leader()
        others = [node for node in cluster.node_ids if node != leader]
        asyncio.run(read(cluster.addresses[leader], others, cluster))
