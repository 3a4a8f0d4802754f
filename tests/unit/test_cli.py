"""The command line: help, versions, errors as one line, exit codes, and what `status` shows."""

from __future__ import annotations

import inspect
import io
import json
import os
import pty
import signal
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from raftha.cli import events, membership
from raftha.cli import status as cli_status
from raftha.cli.app import app, cert
from raftha.cli.console import fail
from raftha.client import cluster_view
from raftha.client.call import NO_ACCESS
from raftha.errors import RafthaError
from raftha.testing.processes import reserve_port
from raftha.version import VERSION

REPOSITORY = Path(__file__).parents[2]
GUIDES = "".join(
    page.read_text(encoding="utf-8") for page in sorted(REPOSITORY.glob("docs/guide/*.md"))
)
COMMANDS = sorted(
    [str(c.name or c.callback.__name__) for c in app.registered_commands if c.callback]
    + [f"cert {command.name}" for command in cert.registered_commands]
)


def run(*args: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, run in this process."""
    result = CliRunner().invoke(app, args)
    return result.exit_code, result.stdout, result.stderr


def run_process(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    return subprocess.run(
        [sys.executable, *args], env=environment, capture_output=True, text=True, check=False
    )


class Fake(socketserver.ThreadingTCPServer):
    """A fake node for `status`: it answers every request with the same bytes."""

    reply: bytes
    allow_reuse_address = True

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"


class Answer(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Fake)
        self.request.recv(4096)
        self.request.sendall(self.server.reply)


@contextmanager
def listening() -> Iterator[Fake]:
    with Fake(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def status_reply(
    node_id: int,
    addresses: dict[int, str],
    learner: int = 0,
    standby: int = 0,
    lags: Mapping[int, int] = MappingProxyType({}),
    **changes: Any,
) -> bytes:
    replicas = [
        {
            "node_id": i,
            "address": "",
            "client_address": a,
            "connected": True,
            "match_index": None,
            "is_voter": i not in (learner, standby),
            "is_standby": i == standby,
            "region": "far" if i == standby else "primary",
            "state": "disconnected" if i == 3 else "active",
            "lag_ms": lags.get(i, 0),
        }
        for i, a in addresses.items()
    ]
    status = {
        "is_running": True, "is_primary": node_id == 1, "node_id": node_id, "term": 4,
        "role": "leader" if node_id == 1 else "follower", "leader_id": 1, "commit_index": 70,
        "applied_index": 70, "sequence": 55, "failure": "", "replicas": replicas,
        "removed": [], **changes,
    }  # fmt: skip
    data = json.dumps(status).encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)


@contextmanager
def fake_cluster(*, lag: int = 0) -> Iterator[dict[int, str]]:
    """Nodes 1, which leads, and 2, which lags; 3 is down."""
    with ExitStack() as stack:
        first, second = (stack.enter_context(listening()) for _ in range(2))
        reserved = stack.enter_context(reserve_port())
        down = f"127.0.0.1:{reserved.getsockname()[1]}"
        addresses = {1: first.address, 2: second.address, 3: down}
        lags = {2: lag, 3: 12_345}
        first.reply = status_reply(1, addresses, lags=lags)
        second.reply = status_reply(2, addresses, lags=lags, applied_index=70 - lag)
        yield addresses


def test_version_is_printed() -> None:
    assert run("--version") == (0, f"raftha {VERSION}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_and_is_in_the_guides(command: str) -> None:
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert len(out.splitlines()) > 5
    assert f"raftha {command}" in GUIDES


def test_without_a_command_the_help_is_shown() -> None:
    _, out, err = run()
    assert all(command.split()[0] in out + err for command in COMMANDS)


@pytest.mark.parametrize(
    "args", [["frobnicate"], ["serve"], ["demo", "--nodes", "2"], ["status", "--frob"]]
)
def test_wrong_usage_exits_with_2(args: list[str]) -> None:
    assert run(*args)[0] == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "can't read"),
        ("node_id =", "is not TOML"),
        ("node_id = 1", "missing setting"),
        ('listen = "x"\nfrob = 1', "unknown setting frob"),
        (
            (
                'node_id = 1\nlisten = "127.0.0.1:0"\ndata_dir = "d"\n[members]\n1 = "127.0.0.1:7"'
                '\n[replication]\nmode = "async_fire_forget"'
            ),
            "a server can't use async_fire_forget",
        ),
        (
            'node_id = 2\nlisten = "127.0.0.1:0"\ndata_dir = "d"\n[members]\n1 = "127.0.0.1:7"',
            "node_id 2",
        ),
    ],
)
def test_serve_explains_a_wrong_configuration_in_one_line(
    tmp_path: Path, text: str | None, message: str
) -> None:
    path = tmp_path / "node.toml"
    if text is not None:
        path.write_text(text)
    code, out, err = run("serve", "--config", str(path))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_serve_refuses_an_unknown_log_level(tmp_path: Path) -> None:
    code, _, err = run("serve", "--config", str(tmp_path / "node.toml"), "--log-level", "loud")
    assert code == 2
    assert "loud" in err


@pytest.mark.slow
def test_serve_refuses_to_run_without_asserts(tmp_path: Path) -> None:
    for flags, environment in ((["-O"], {}), ([], {"PYTHONOPTIMIZE": "1"})):
        arguments = [*flags, "-m", "raftha", "serve", "--config", str(tmp_path / "node.toml")]
        process = run_process(*arguments, **environment)
        assert process.returncode == 2
        assert process.stderr.startswith("error: python -O")
        assert process.stderr.count("\n") == 1


@pytest.mark.slow
def test_serve_explains_a_port_in_use(tmp_path: Path) -> None:
    with listening() as other, reserve_port() as peer:
        path = tmp_path / "node.toml"
        path.write_text(
            f'node_id = 1\ndata_dir = "data"\nlisten = "{other.address}"\n'
            f'[members]\n1 = "127.0.0.1:{peer.getsockname()[1]}"\n'
        )
        process = run_process("-m", "raftha", "serve", "--config", str(path))
    assert process.returncode == 2
    assert process.stderr.splitlines()[-1].startswith("error: ")
    assert "Address already in use" in process.stderr
    assert "Traceback" not in process.stderr


def test_status_finds_all_nodes_from_one() -> None:
    with fake_cluster(lag=9) as addresses:
        code, out, err = run("status", addresses[2], "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["leader_id"] == 1
    assert {n["node_id"]: n["address"] for n in document["nodes"]} == addresses
    first, second, third = document["nodes"]
    assert first["status"]["role"] == "leader"
    assert second["status"]["applied_index"] == 61
    assert third["status"] is None
    assert "can't be reached" in third["error"]


def test_status_shows_a_table_with_lag_and_the_nodes_not_reached() -> None:
    with fake_cluster(lag=9) as addresses:
        code, out, _ = run("status", addresses[1])
    assert code == 0
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.strip()}
    bar = "\N{FULL BLOCK}"
    assert rows["1"] == ["leader", "active", "4", "1", "70", "70", "55", "0", addresses[1]]
    assert rows["2"] == [
        "follower", "active", "4", "1", "70", "61", "55", bar, "9", "ms", addresses[2]
    ]  # fmt: skip
    assert rows["3"] == ["not", "reached", "disconnected", 5 * bar, "12.3", "s", addresses[3]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "shown"), [(["--json"], '{"leader_id": 1'), ([], "node 1 leads"), ([], "9")]
)
def test_status_watches_until_ctrl_c(args: list[str], shown: str) -> None:
    """On a terminal of its own, where the screen is redrawn."""
    with fake_cluster(lag=9) as addresses:
        command = ("-m", "raftha", "status", addresses[1], "--watch", "--interval", "0.1", *args)
        terminal, its_side = pty.openpty()
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "200"}
        with subprocess.Popen(
            [sys.executable, *command],
            stdin=its_side, stdout=its_side, stderr=its_side, env=environment,
            start_new_session=True,
        ) as process:  # fmt: skip
            os.close(its_side)
            seen = b""
            while seen.count(shown.encode()) < 3:
                seen += os.read(terminal, 65536)
            process.send_signal(signal.SIGINT)
            with suppress(OSError):  # EIO: the other side is closed.
                while data := os.read(terminal, 65536):
                    seen += data
            assert process.wait(20) == 0
        os.close(terminal)
    assert b"Traceback" not in seen


def test_watching_goes_on_when_the_node_that_was_named_is_gone() -> None:
    with listening() as second:
        with listening() as first:
            addresses = {1: first.address, 2: second.address}
            second.reply = status_reply(2, addresses)
            first.reply = status_reply(1, addresses)
            poll_statuses = cluster_view.poll_statuses([first.address], NO_ACCESS, 0.0)
            assert all(node["status"] for node in next(poll_statuses))
        for _ in range(2):
            one, two = next(poll_statuses)
            assert (one["node_id"], one["status"]) == (1, None)
            assert two["status"]["node_id"] == 2


def test_readable_events_have_no_more_digits_than_were_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stamps = {"reporter": 2, "number": 7, "time_us": 1_795_000_000_000_000}
    event = {"kind": "failover_completed", **stamps}
    events.Printer([], False)({**event, "new_primary": 1, "duration_ms": 118.27690700010862})
    line = capsys.readouterr().out
    assert line.endswith("node 2  failover_completed       new_primary=1 duration_ms=118.3\n")


def test_status_asks_the_node_of_a_configuration_file(tmp_path: Path) -> None:
    with fake_cluster() as addresses:
        path = tmp_path / "node.toml"
        path.write_text(
            f'node_id = 1\ndata_dir = "data"\nlisten = "{addresses[1]}"\n'
            '[members]\n1 = "127.0.0.1:7"\n'
        )
        assert run("status", "--config", str(path))[0] == 0


def test_status_fails_if_no_node_leads() -> None:
    with listening() as node:
        node.reply = status_reply(2, {2: node.address}, leader_id=None)
        code, out, err = run("status", node.address)
    assert code == 1
    assert "follower" in out
    assert "no node leads" in err


def test_status_fails_if_no_node_answers() -> None:
    with reserve_port() as reserved:
        code, out, err = run("status", f"127.0.0.1:{reserved.getsockname()[1]}", "--json")
    assert code == 1
    assert json.loads(out)["leader_id"] is None
    assert "no node answers" in err


@pytest.mark.parametrize(
    "reply", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"+OK\r\n", b"-ERR unknown\r\n", b"$2\r\n{}\r\n"]
)
def test_status_recognises_a_server_that_is_no_node(reply: bytes) -> None:
    with listening() as other:
        other.reply = reply
        code, out, _ = run("status", other.address, "--json")
    assert code == 1
    assert json.loads(out)["nodes"][0]["error"]


def test_status_refuses_an_invalid_address() -> None:
    code, _, err = run("status", "nowhere")
    assert code == 2
    assert "host:port" in err


def test_a_deposed_leader_that_does_not_know_it_is_not_the_leader() -> None:
    nodes = [
        {"status": {"is_primary": True, "is_running": True, "term": term, "node_id": node_id}}
        for node_id, term in ((1, 3), (2, 5))
    ]
    assert cluster_view.find_leader([*nodes, {"status": None}]) == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "can't read"),
        ("data.parquet", b"", "known: .csv .jsonl .txt"),
        ("empty.txt", b"", "no rows"),
        ("bad.jsonl", b'{"a": 1}\n{"a"\n', "line 2 is not JSON"),
        ("bad.csv", b'a,b\n"c', "line 2"),
        ("latin.csv", b"\xfc\n", "not UTF-8"),
        ("large.txt", b"x" * (1 << 20) + b"y", "row 1"),
    ],
)
def test_demo_explains_an_input_it_cannot_use(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    code, out, err = run("demo", "--input", str(path))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert message in err


def test_the_notes_of_an_error_are_printed_below_it(capsys: pytest.CaptureFixture[str]) -> None:
    error = RafthaError("it broke")
    error.add_note("logs are there")
    with pytest.raises(typer.Exit):
        fail(error, 1)
    assert capsys.readouterr().err == "error: it broke\n  logs are there\n"


def test_status_shows_learners_and_removed_nodes() -> None:
    with listening() as first, listening() as second, listening() as gone:
        addresses = {1: first.address, 2: second.address}
        first.reply = status_reply(1, addresses, learner=2, removed=[3, 4])
        second.reply = status_reply(2, addresses, learner=2, removed=[3, 4])
        # Node 3 doesn't know of the removal yet, and still lists node 4.
        gone.reply = status_reply(3, {**addresses, 3: gone.address, 4: ""}, commit_index=5)
        code, out, _ = run("status", first.address, gone.address)
        assert code == 0
        cells = [line.split() for line in out.splitlines() if line.strip()]
        rows = {words[0]: words[1] for words in cells if words[0].isdigit()}
        assert rows == {"1": "leader", "2": "learner", "3": "removed"}
        assert "removed for good: 3, 4" in out


def test_status_tells_of_members_that_run_twice() -> None:
    with listening() as first:
        first.reply = status_reply(1, {1: first.address}, cloned=[2])
        _, out, _ = run("status", first.address)
        assert "node 1 sees two processes of node 2: stop the copy" in out


def shown_at(width: int, **changes: Any) -> list[str]:
    """The lines of a table of four nodes: 2 is a standby, 3 has failed, 4 isn't reached."""
    addresses = {i: f"192.168.100.{i}:7000" for i in (1, 2, 3, 4)}
    large = {"commit_index": 123_456_789, "applied_index": 123_456_780, "sequence": 987_654_321}
    nodes: list[dict[str, Any]] = []
    for i, address in addresses.items():
        failure: dict[str, Any] = {"role": "failed", "failure": "a sync failed"} if i == 3 else {}
        reply = status_reply(i, addresses, standby=2, lags={4: 123_456}, **large, **failure)
        status = json.loads(reply.split(b"\r\n")[1]) if i != 4 else None
        nodes.append({"node_id": i, "address": address, "status": status, "error": "refused"})
    out = Console(width=width, file=io.StringIO())
    out.print(cli_status.status_table(nodes, out))
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 120, 200])
def test_status_shows_health_and_addresses_in_a_narrow_window(width: int) -> None:
    lines = shown_at(width)
    assert max(map(len, lines)) <= width
    rows = {line.split()[0]: line for line in lines if line.strip()[:1].isdigit()}
    assert [rows[i].split()[1] for i in "123"] == ["leader", "standby", "failed"]
    assert "not reached" in rows["4"]
    assert "123.5 s" in rows["4"]
    assert all(f"192.168.100.{i}:7000" in row for i, row in rows.items())
    names = next(line for line in lines if "node" in line).split()
    assert ("sequence" in names, "applied" in names, "region" in names) == {
        80: (False, False, False),
        120: (False, True, True),
        200: (True, True, True),
    }[width]


def test_status_says_why_a_node_failed() -> None:
    with listening() as node:
        node.reply = status_reply(1, {1: node.address}, role="failed", failure="a sync failed")
        code, out, _ = run("status", node.address)
    assert code == 0
    assert "node 1 failed: a sync failed" in out


def test_member_remove_shows_what_would_be_left() -> None:
    with fake_cluster() as addresses:
        code, out, _ = run("member", "remove", "3", "--dry-run", "--connect", addresses[1])
        assert code == 0
        assert "2 of 2 voters are a majority" in out
        code, out, _ = run(
            "member", "remove", "3", "--dry-run", "--json", "--connect", addresses[1]
        )
        assert [member["node_id"] for member in json.loads(out)["members"]] == [1, 2]
        code, _, err = run("member", "remove", "9", "--dry-run", "--connect", addresses[1])
        assert code == 2
        assert "node 9 is not a member" in err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("add", "4", "nonsense"), "host:port"),
        (("add", "4", "127.0.0.1:1", "--connect", "127.0.0.1:2", "--config", "x"), "exclude"),
        (("remove", "4", "--config", "missing.toml"), "can't read"),
        (("promote",), "a node's id, or --region"),
        (("promote", "4", "--region", "far"), "a node's id, or --region"),
    ],
)
def test_member_explains_wrong_usage(args: tuple[str, ...], message: str) -> None:
    code, _, err = run("member", *args)
    assert code == 2
    assert message in err


def test_a_refusal_is_printed_without_the_protocols_prefix() -> None:
    with listening() as node:
        node.reply = b"-ERR node 9 is not a member\r\n"
        asked = ("--connect", node.address)
        assert run("member", "promote", "9", *asked) == (2, "", "error: node 9 is not a member\n")
        node.reply = b"-TRANSFERFAILED node 9 is a learner\r\n"
        assert run("failover", "9", *asked) == (1, "", "error: node 9 is a learner\n")
        node.reply = b"-NOAUTH Authentication required.\r\n"
        code, _, err = run("member", "add", "9", "127.0.0.1:1", *asked)
        assert (code, err) == (1, "error: NOAUTH Authentication required.\n")


@pytest.mark.slow
def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    """As `raftha status | head` does: a pipe without a reader."""
    reading, writing = os.pipe()
    os.close(reading)
    with fake_cluster() as addresses:
        process = subprocess.run(
            [sys.executable, "-m", "raftha", "status", addresses[1]],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdout=writing, stderr=subprocess.PIPE, check=False,
        )  # fmt: skip
    os.close(writing)
    assert (process.returncode, process.stderr) == (1, b"")


def test_failover_says_which_node_leads() -> None:
    with listening() as node:
        node.reply = b"+OK\r\n"
        assert run("failover", "2", "--connect", node.address) == (0, "node 2 leads now\n", "")
        code, out, _ = run("failover", "2", "--connect", node.address, "--json")
    assert (code, json.loads(out)) == (0, {"leader_id": 2})


def test_help_has_no_line_that_a_window_of_80_columns_breaks() -> None:
    """The first paragraph of a help text is wrapped again; other lines stay as they are."""
    for group in (app, cert, membership.member):
        for command in group.registered_commands:
            _, *paragraphs = inspect.cleandoc(
                (command.callback and command.callback.__doc__) or ""
            ).split("\n\n")
            assert all(len(line) <= 78 for text in paragraphs for line in text.splitlines())


@pytest.mark.parametrize("command", ["add", "promote", "remove"])
def test_every_command_about_members_has_help_and_is_in_the_guides(command: str) -> None:
    code, out, _ = run("member", command, "--help")
    assert code == 0
    assert len(out.splitlines()) > 5
    assert f"raftha member {command}" in GUIDES


def test_cert_makes_a_ca_and_a_node_and_says_where(tmp_path: Path) -> None:
    ca, folder = tmp_path / "ca", tmp_path / "node"
    code, out, _ = run("cert", "ca", "--cluster", "orders", "--out", str(ca), "--json")
    assert code == 0
    assert json.loads(out)["key"] == str(ca / "ca.key")
    node = ["cert", "node", "--ca", str(ca), "--node-id", "1", "--out", str(folder)]
    code, out, _ = run(
        *node, "--days", "30", "--host", "127.0.0.1", "--host", "db.example", "--json"
    )
    assert code == 0
    made = json.loads(out)
    assert sorted(made) == ["ca", "certificate", "expires", "key"]
    assert all(Path(made[name]).is_file() for name in ("ca", "certificate", "key"))
    code, out, err = run(*node)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert "there already" in err
    code, out, _ = run(*node[:5], "2", *node[6:])
    assert code == 0
    assert "node-2.crt" in out
