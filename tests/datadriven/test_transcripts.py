"""Replays the transcripts in `testdata`; `pytest --rewrite` records them again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.datadriven.interpreter import replay

TRANSCRIPTS = sorted((Path(__file__).parent / "testdata").glob("*.txt"))


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_the_core_does_what_the_transcript_says(path: Path, request: pytest.FixtureRequest) -> None:
    text = path.read_text(encoding="utf-8")
    actual = replay(text)
    if request.config.getoption("--rewrite"):
        path.write_text(actual, encoding="utf-8")
    else:
        assert actual == text


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=lambda path: path.stem)
def test_a_transcript_begins_with_what_it_shows(path: Path) -> None:
    first, *_ = path.read_text(encoding="utf-8").splitlines()
    assert first.startswith("# ")


@pytest.mark.parametrize(
    "text", ["fly 1\n----\n", "add-nodes 3 wings\n----\n", "add-nodes 3\n"], ids=str.split
)
def test_a_transcript_with_a_mistake_is_refused(text: str) -> None:
    with pytest.raises(AssertionError):
        replay(text)
