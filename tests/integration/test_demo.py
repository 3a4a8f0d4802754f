"""`raftha demo`: it succeeds, notices a loss, and leaves nothing behind when interrupted."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from rich.console import Console

from raftha.cli.demo import Failover, Report, digest_of, find_differences, render, run_demo
from raftha.cli.demo_data import load_records, unicode_records
from raftha.testing import LocalCluster
from tests.support.conditions import wait_until
from tests.support.nodes import process_ids_in

pytestmark = pytest.mark.slow
REPOSITORY = Path(__file__).parents[2]
ROWS = 3000


def start_demo(folder: Path, *args: str, shell: str = "") -> subprocess.Popen[str]:
    """Start `raftha demo` with `folder` for its temporary files, after the shell's command."""
    command = [sys.executable, "-m", "raftha", "demo", *args]
    if shell:
        command = ["sh", "-c", f'{shell}; exec "$@"', "sh", *command]
    return subprocess.Popen(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"row": {number}}}\n' for number in range(ROWS)))
    return path


def test_the_demo_loses_nothing_and_prints_only_json(tmp_path: Path, rows: Path) -> None:
    demo = start_demo(tmp_path, "--input", str(rows), "--json")
    out, err = demo.communicate()
    assert (demo.returncode, err) == (0, "")
    report = json.loads(out)
    assert report["ok"]
    assert report["problems"] == []
    assert report["records"] == report["acknowledged"] == ROWS
    assert (report["lost"], report["wrong"]) == (0, 0)
    assert report["digests"] == dict.fromkeys("123", digest_of(load_records(rows)))
    assert report["new_leader"] != report["killed_node"]
    assert report["term_after"] > report["term_before"]
    assert 0 < report["failover_ms"] < 60_000
    assert report["catch_up_s"] > 0
    assert list(tmp_path.iterdir()) == [rows]


def test_every_field_of_the_json_is_in_the_guide(rows: Path) -> None:
    report = run_demo(rows, with_backup=True)
    assert report.ok, report.problems
    assert report.restoration is not None
    assert report.restoration.is_equal
    assert set(report.restoration.digests) == {"1", "2", "3"}
    assert report.restoration.expected_digest != report.expected_digest
    text = (REPOSITORY / "docs" / "guide" / "quick-start.md").read_text(encoding="utf-8")
    fields = report.as_dict()
    names = [*fields, *fields["restoration"]]
    assert [name for name in names if f"`{name}`" not in text] == []
    assert "ok" in str(render(report).columns[1]._cells[-1])


def test_a_bad_deploy_is_taken_back_while_the_leader_dies(tmp_path: Path, rows: Path) -> None:
    demo = start_demo(tmp_path, "--input", str(rows), "--disaster", "--json")
    out, err = demo.communicate()
    assert (demo.returncode, err) == (0, "")
    report = json.loads(out)
    disaster = report["disaster"]
    assert (report["ok"], report["problems"]) == (True, [])
    assert disaster["recovered_digests"] == dict.fromkeys("123", disaster["recovered_digest"])
    assert disaster["damaged_digests"] == dict.fromkeys("123", disaster["damaged_digest"])
    assert disaster["recovered_digest"] != disaster["damaged_digest"]
    assert 0 < disaster["orders_undone"] < disaster["orders"]
    assert disaster["undone"] > disaster["orders_undone"]
    assert disaster["came_back"] == 0
    assert disaster["killed_in"] in ("prepared", "restored")
    text = (REPOSITORY / "docs" / "guide" / "quick-start.md").read_text(encoding="utf-8")
    assert [name for name in disaster if f"`{name}`" not in text] == []
    assert list(tmp_path.iterdir()) == [rows]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_nothing(
    tmp_path: Path, rows: Path, number: signal.Signals
) -> None:
    with start_demo(tmp_path, "--input", str(rows)) as demo:
        wait_until(lambda: len(process_ids_in(tmp_path)) == 3, "three servers", 30)
        demo.send_signal(number)
        _, err = demo.communicate()
    assert demo.returncode == 130
    assert "Traceback" not in err
    assert process_ids_in(tmp_path) == []
    assert list(tmp_path.iterdir()) == [rows]


def test_a_demo_in_the_background_of_a_script_ends_at_sigterm(tmp_path: Path, rows: Path) -> None:
    """A shell without job control starts its background jobs with SIGINT ignored."""
    with start_demo(tmp_path, "--input", str(rows), shell="trap '' INT") as demo:
        wait_until(lambda: len(process_ids_in(tmp_path)) == 3, "three servers", 30)
        demo.terminate()
        _, err = demo.communicate()
    assert demo.returncode == 130
    assert "Traceback" not in err
    assert process_ids_in(tmp_path) == []
    assert list(tmp_path.iterdir()) == [rows]


def test_a_demo_interrupted_while_it_loads_leaves_nothing(tmp_path: Path) -> None:
    with start_demo(tmp_path) as demo:  # The whole Unicode database: long enough.
        logs = tmp_path.glob
        wait_until(
            lambda: any("role=leader" in p.read_text() for p in logs("*/node-*/node.log")),
            "a leader",
            30,
        )
        demo.send_signal(signal.SIGINT)
        _, err = demo.communicate()
    assert demo.returncode == 130
    assert "Traceback" not in err
    assert process_ids_in(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_killed_demo_leaves_no_process(tmp_path: Path, rows: Path) -> None:
    with start_demo(tmp_path, "--input", str(rows)) as demo:
        wait_until(lambda: len(process_ids_in(tmp_path)) == 3, "three servers", 30)
        demo.kill()
    wait_until(lambda: process_ids_in(tmp_path) == [], "no server", 30)


def test_a_lost_and_a_changed_record_are_found() -> None:
    records = [(b"%d" % number, b"value") for number in range(1200)]

    async def differences(address: str) -> list[tuple[bytes, bytes | None]]:
        return [difference async for difference in find_differences(address, records)]

    with LocalCluster(1) as cluster:
        cluster.call(1, "MSET", *(part for record in records for part in record))
        address = cluster.addresses[1]
        assert asyncio.run(differences(address)) == []
        assert cluster.digests()[1]["hex"] == digest_of(records)
        cluster.call(1, "DEL", "7")
        cluster.call(1, "SET", "1199", "other")
        assert asyncio.run(differences(address)) == [(b"7", None), (b"1199", b"other")]
        assert cluster.digests()[1]["hex"] != digest_of(records)


def test_a_copy_with_one_record_too_many_has_another_digest() -> None:
    with LocalCluster(1) as cluster:
        cluster.call(1, "MSET", "a", "1", "b", "2")
        assert cluster.digests()[1]["hex"] != digest_of([(b"a", b"1")])


def test_a_report_of_a_loss_says_so() -> None:
    failover = Failover(killed_node=1, new_leader=2, term_before=1, term_after=2, failover_ms=9.5)
    report = Report(
        source="x", nodes=3, records=2, acknowledged=2, load_s=1.0, records_per_s=2.0, p50_ms=1.0,
        p99_ms=1.0, max_ms=1.0, failover=failover, catch_up_s=1.0, lost=1, wrong=0,
        expected_digest="aa", digests={"1": "aa", "2": "aa", "3": "bb"}, sequence=2,
        problems=["record b'x' is missing"],
    )  # fmt: skip
    assert not report.ok
    assert not report.digests_equal
    console = Console(width=120, file=io.StringIO())
    console.print(render(report))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "failed" in text
    assert "different" in text


def test_the_unicode_records_are_every_named_character() -> None:
    records = unicode_records()
    assert len(records) > 30_000
    assert len(dict(records)) == len(records)
    value = json.loads(dict(records)[b"U+00BD"])
    assert value["name"] == unicodedata.name("½")
    assert value["numeric"] == 0.5
    assert value["decomposition"] == "<fraction> 0031 2044 0032"


def test_rows_of_files_become_records(tmp_path: Path) -> None:
    text, table, lines = (tmp_path / name for name in ("a.txt", "b.CSV", "c.jsonl"))
    text.write_bytes(b"one\r\n\ntwo \xff")
    table.write_text('id,word\n1,"a\nb"\n2,ü\n', encoding="utf-8")
    lines.write_text('{"a": 1}\n\n[2]\n')
    assert load_records(text) == [(b"1", b"one"), (b"2", b""), (b"3", b"two \xff")]
    assert [v for _, v in load_records(table)] == [
        b'["id", "word"]', b'["1", "a\\nb"]', '["2", "ü"]'.encode()
    ]  # fmt: skip
    assert load_records(lines) == [(b"1", b'{"a": 1}'), (b"2", b"[2]")]
    text.write_bytes(b"x\n" * 12)
    keys = [key for key, _ in load_records(text)]
    assert (keys[0], keys[-1]) == (b"01", b"12")
    assert keys == sorted(keys)
