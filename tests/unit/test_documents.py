"""The runner of the documents' blocks notices the faults of a document."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.documents import Block, BlockFailed, Reader, check_ports, printed_as

pytestmark = pytest.mark.slow


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    folder, scratch = tmp_path / "folder", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    reader = Reader(folder, scratch)
    yield reader
    reader.close()


def block(language: str, text: str, **directive: str) -> Block:
    return Block("a document:1", language, text, directive)


def test_a_command_that_fails_is_named(reader: Reader) -> None:
    with pytest.raises(BlockFailed, match=r"a document:1: (?s:.*)false"):
        reader.follow(block("sh", "true\nfalse\ntrue\n"))


def test_blocks_share_one_terminal_and_files_are_written_to_its_folder(reader: Reader) -> None:
    reader.follow(block("toml", "# a/b.toml: a file\nx = 1\n"))
    reader.follow(block("sh", "cd a\nname=b.toml\n"))
    reader.follow(block("console", "$ grep x $name\nx = 2\n$ echo\n"))


def test_the_output_of_a_command_is_compared(reader: Reader) -> None:
    with pytest.raises(BlockFailed, match="not"):
        reader.follow(block("console", "$ echo yes\nno\n"))


def test_python_blocks_share_one_process(reader: Reader) -> None:
    reader.follow(block("python", "x = 1\n"))
    reader.follow(block("python", "assert x == 1\n"))
    with pytest.raises(BlockFailed, match="AssertionError"):
        reader.follow(block("python", "assert x == 2\n"))


def test_background_commands_are_waited_for_and_ended(reader: Reader) -> None:
    command = f"echo begun; sleep 1000; echo went on >> {reader.scratch}/ended\n"
    reader.follow(block("sh", command * 2, background="", until="begun"))
    reader.follow(block("sh", "sleep 1000 &\necho there\n", until="there"))
    reader.close()
    assert not (reader.scratch / "ended").exists()


def test_a_block_of_another_language_must_be_a_file(reader: Reader) -> None:
    with pytest.raises(BlockFailed, match="file's name"):
        reader.follow(block("toml", "x = 1\n"))


def test_an_unknown_extra_is_noticed(reader: Reader) -> None:
    text = "python3 -m venv .venv && .venv/bin/pip install '.[{}]' && echo done\n"
    reader.follow(block("sh", text.format("test"), install="", until="done"))
    with pytest.raises(BlockFailed, match="nosuch"):
        reader.follow(block("sh", text.format("nosuch"), install=""))


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(BlockFailed, match=f"port {port}, which the document uses, is taken"):
            check_ports(f"listen = 127.0.0.1:{port}")
    check_ports(f"listen = 127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("expected", "actual", "is_same"),
    [
        ("total 5\n", "total  17 \n\n", True),
        ("total 5\n", "totals 17\n", False),
        ("a\n...\nz\n", "a\nb\nc\nz\n", True),
        ("a ... z\n", "a b c z\n", True),
        ("── ──\n", "─────── ─\n", True),
    ],
)
def test_numbers_and_space_may_differ(expected: str, actual: str, is_same: bool) -> None:
    assert printed_as(expected, actual) is is_same
