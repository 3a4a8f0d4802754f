"""Buckets: their URLs, servers that misbehave, and what others may put into them."""

from __future__ import annotations

import json
import secrets
import time
import urllib.request
from pathlib import Path
from urllib.parse import quote

import pytest

from raftha.errors import (
    ConfigError,
    DeletionDenied,
    ObjectExists,
    RepositoryError,
    RepositoryUnavailable,
)
from raftha.storage.backup.destination import Destination, create_or_compare
from raftha.storage.backup.destinations import open_destination
from raftha.testing.processes import reserve_port
from tests.support.certificates import make_cluster
from tests.support.gcs_fake import PAGE
from tests.support.stores import BUCKET, Servers, Stores, moto_command

pytestmark = pytest.mark.slow


class Opener:
    """Opens buckets of the fake of GCS, by which servers misbehave in the way of their names."""

    def __init__(self, stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = stores.get("gcs")
        for name, value in self.store.environment.items():
            monkeypatch.setenv(name, value)
        account = json.loads(self.store.environment["GOOGLE_SERVICE_ACCOUNT_KEY"])
        self.server: str = account["gcs_base_url"]

    def __call__(self, bucket: str) -> Destination:
        url = self.store.url_of(secrets.token_hex(8), bucket)
        return open_destination("offsite", url, base=Path())


@pytest.fixture
def opened(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> Opener:
    return Opener(stores, monkeypatch)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://key:secret@bucket/x", "credentials"),
        ("s3://bucket/x?access_key_id=k", "unknown"),
        ("s3://bucket/x?region=r&secret_access_key=hunter2", "unknown"),
        ("gs://bucket/x?endpoint=http://x", "unknown"),
        ("s3:///prefix", "no bucket"),
        ("s3://bucket/../x", "name"),
        ("s3://bucket/a//b", "name"),
        ("s3://bucket/%0a", "name"),
        ("s3://bucket/x#y", "no bucket"),
        ("s3://bucket/x?ca=/no/such/file", "No such file"),
        ("az://container/x", "offsite"),
    ],
)
def test_a_url_that_is_wrong_is_an_error_without_secrets(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        open_destination("offsite", url, base=Path())
    assert "offsite" in str(raised.value)
    assert "hunter2" not in str(raised.value)
    assert "secret@" not in str(raised.value)


def test_a_list_of_many_pages_is_whole(opened: Opener) -> None:
    destination = opened(BUCKET)
    names = sorted(f"a/{number:04}" for number in range(2 * PAGE + 1))
    for name in names:
        destination.create(name, b"")
    assert [each.name for each in destination.list("a/")] == names


def test_a_server_that_ignores_conditions_does_no_harm_to_equal_bytes(opened: Opener) -> None:
    destination = opened("ignores-conditions")
    create_or_compare(destination, "a", b"content")
    create_or_compare(destination, "a", b"content")
    assert bytes(destination.get("a", size_max=10)) == b"content"


def test_a_deletion_that_is_denied_says_so(opened: Opener) -> None:
    destination = opened("denies-deletes")
    destination.create("a", b"content")
    with pytest.raises(DeletionDenied) as raised:
        destination.delete("a")
    assert (raised.value.destination, raised.value.object) == ("offsite", "a")


def test_a_deletion_that_s3_denies_within_an_answer_of_success_says_so(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    url = f"s3://{BUCKET}/x?region=us-east-1&endpoint={opened.server}"
    with pytest.raises(DeletionDenied):
        open_destination("offsite", url, base=Path()).delete("a")


def test_an_answer_that_ends_early_is_no_object(opened: Opener) -> None:
    destination = opened("cuts-answers")
    destination.create("a", bytes(100_000))
    with pytest.raises(RepositoryUnavailable):
        destination.get("a", size_max=100_000)


def test_refusals_name_the_credentials(opened: Opener) -> None:
    destination = opened("refuses-all")
    for use in (
        lambda: destination.create("a", b""),
        lambda: destination.get("a", size_max=5),
        lambda: destination.list(""),
    ):
        with pytest.raises(RepositoryUnavailable) as raised:
            use()
        assert "credentials" in raised.value.hint


def test_a_server_that_is_busy_is_asked_again(opened: Opener) -> None:
    destination = opened("throttles")
    create_or_compare(destination, "a", b"content")
    assert bytes(destination.get("a", size_max=10)) == b"content"
    assert [each.name for each in destination.list("")] == ["a"]


def test_without_conditions_a_look_comes_before_the_put(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stores.get("moto")
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    url = store.url_of(secrets.token_hex(8)) + "&conditions=off"
    destination = open_destination("offsite", url, base=Path())
    destination.create("a", b"first")
    with pytest.raises(ObjectExists):
        destination.create("a", b"second")
    assert bytes(destination.get("a", size_max=10)) == b"first"


def test_a_server_that_is_away_is_unavailable_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    nothing_listens = reserve_port()
    port = nothing_listens.getsockname()[1]
    url = f"s3://bucket/x?region=us-east-1&endpoint=http://127.0.0.1:{port}"
    destination = open_destination("offsite", url, base=Path())
    began = time.monotonic()
    for use in (
        lambda: destination.create("a", b""),
        lambda: destination.get("a", size_max=5),
        lambda: destination.get_range("a", 0, 5),
        lambda: destination.list(""),
        lambda: destination.delete("a"),
    ):
        with pytest.raises(RepositoryUnavailable, match="offsite"):
            use()
    assert time.monotonic() - began < 20
    nothing_listens.close()


def test_a_bucket_that_is_missing_is_named(stores: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    store = stores.get("moto")
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    destination = open_destination("offsite", store.url_of("x", "nowhere"), base=Path())
    with pytest.raises(RepositoryUnavailable, match="does the bucket exist"):
        destination.create("a", b"")


@pytest.mark.parametrize("key", ["b c", "ä", "b~", "%2e%2e", "deep/" * 8 + "x", "y" * 200])
def test_foreign_objects_are_left_out_of_a_list(opened: Opener, key: str) -> None:
    destination = opened(BUCKET)
    destination.create("a/ours", b"")
    put_raw(opened, destination, f"a/{key}")
    assert [each.name for each in destination.list("")] == ["a/ours"]


@pytest.mark.parametrize("key", ["a//b", "../../x", "a/./b"])
def test_a_foreign_object_that_no_list_can_show_is_named(opened: Opener, key: str) -> None:
    destination = opened(BUCKET)
    destination.create("a/ours", b"")
    put_raw(opened, destination, key)
    with pytest.raises(RepositoryError, match="delete this object") as raised:
        destination.list("")
    assert not isinstance(raised.value, RepositoryUnavailable)
    assert bytes(destination.get("a/ours", size_max=5)) == b""


def test_a_server_with_a_certificate_of_its_own_authority_is_trusted_by_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_cluster(tmp_path, nodes=1)[1]
    servers = Servers()
    port = servers.reserve_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    url = f"s3://none/x?region=us-east-1&endpoint=https://127.0.0.1:{port}"
    try:
        tls = ["-c", str(made.certificate), "-k", str(made.key)]
        servers.start([*moto_command(port), *tls], tmp_path, port)
        trusting = open_destination("offsite", f"{url}&ca={made.ca}", base=Path())
        with pytest.raises(RepositoryUnavailable, match="does the bucket exist"):
            trusting.create("a", b"")
        with pytest.raises(RepositoryUnavailable, match="error sending request"):
            open_destination("offsite", url, base=Path()).create("a", b"")
    finally:
        servers.close()


def put_raw(opened: Opener, destination: Destination, key: str) -> None:
    """Put an object of any name into the folder of `destination`, as another program can."""
    from raftha.storage.backup.object_store import ObjectStoreDestination

    assert isinstance(destination, ObjectStoreDestination)
    path = quote(destination._prefix + key)
    request = urllib.request.Request(f"{opened.server}/{BUCKET}/{path}", method="PUT", data=b"x")
    urllib.request.urlopen(request, timeout=10).close()
