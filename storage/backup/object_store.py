"""A destination in an object store, by the library obstore: S3 and what speaks it, GCS, Azure.

    s3://bucket/prefix?region=..&endpoint=..&virtual_hosted=true&conditions=off&ca=..
    gs://bucket/prefix?ca=..
    az://container/prefix?account=..&endpoint=..&ca=..

Theory of operation. Credentials come from where the cloud's own tools look for them (environment,
instance metadata), and never from the URL. `endpoint` names a server that isn't the cloud's own; it
may be plain HTTP. `ca` is a PEM file with the certificate authority of such a server.

`create` is a conditional put (`If-None-Match: *`). For a server that refuses conditions,
`conditions=off` makes it a look and then a put. A server that ignores them is noticed by
`raftha backup check`, and harmless: names come from consensus, so writers of one name write the
same bytes.

obstore repeats failed requests itself, for at most RETRY_S; each request ends within TIMEOUT_S.
Only its blocking calls are used, which wait without Python's lock, in threads that a stopping node
joins: an unfinished awaited call of obstore outlives its event loop, and ends the interpreter
badly. What it returns are memoryviews of its own buffers, since copying megabytes keeps the lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from raftha.errors import (
    BackupDamaged,
    ConfigError,
    DeletionDenied,
    ObjectExists,
    ObjectMissing,
    ObjectTooLarge,
    RepositoryError,
    RepositoryUnavailable,
)
from raftha.extras import extra
from raftha.storage.backup.destination import LISTED_MAX, ObjectInfo
from raftha.storage.backup.names import check_folder, check_name, is_name

with extra("backup"):
    import obstore
    from obstore.exceptions import (
        AlreadyExistsError,
        BaseError,
        NotSupportedError,
        PermissionDeniedError,
        PreconditionError,
        UnauthenticatedError,
    )
    from obstore.store import AzureStore, GCSStore, S3Store

if TYPE_CHECKING:
    from obstore.store import ClientConfig, ObjectStore, RetryConfig

TIMEOUT_S = 60
CONNECT_TIMEOUT_S = 10
RETRY_S = 30
RETRIES_MAX = 3
_LIST_CHUNK = 1000
_REASON_CHARS = 300
_PARAMETERS = {
    "s3": {"region", "endpoint", "virtual_hosted", "conditions", "ca"},
    "gs": {"ca"},
    "az": {"account", "endpoint", "ca"},
}


class ObjectStoreDestination:
    """A bucket or container, below a prefix."""

    def __init__(
        self, name: str, store: ObjectStore, prefix: str, *, has_conditions: bool = True
    ) -> None:
        """`prefix` is "" or ends with a slash."""
        self._name = name
        self._store = store
        self._prefix = prefix
        self._has_conditions = has_conditions

    @property
    def name(self) -> str:
        return self._name

    def create(self, name: str, data: bytes | memoryview) -> None:
        path = self._path(name)
        with self._explained(name, missing=RepositoryUnavailable):
            if self._has_conditions:
                obstore.put(self._store, path, data, mode="create", use_multipart=False)
                return
            if self._size(path) is None:
                obstore.put(self._store, path, data, use_multipart=False)
                return
        raise ObjectExists("it exists", destination=self._name, object_name=name)

    def get(self, name: str, *, size_max: int) -> memoryview:
        with self._explained(name):
            found = obstore.get(self._store, self._path(name))
            size = found.meta["size"]
            if size > size_max:
                raise ObjectTooLarge(
                    f"{size} bytes, expected at most {size_max}",
                    destination=self._name,
                    object_name=name,
                )
            data = memoryview(found.bytes())
        if len(data) != size:
            raise RepositoryUnavailable(
                f"{len(data)} bytes came, of {size}", destination=self._name, object_name=name
            )
        return data

    def get_range(self, name: str, start: int, size: int) -> bytes | memoryview:
        path = self._path(name)
        if not size:
            return b""
        try:
            found = memoryview(obstore.get_range(self._store, path, start=start, length=size))
        except FileNotFoundError as error:
            raise self._error(name, error, ObjectMissing) from error
        except (BaseError, ValueError) as error:
            # Each store has its own answer to a range beyond the end.
            with self._explained(name):
                length = self._size(path)
            if length is None or length >= start + size:
                raise self._error(name, error, ObjectMissing) from error
            found = memoryview(b"")
        if len(found) != size:
            raise BackupDamaged(
                f"it ends before byte {start + size}", destination=self._name, object_name=name
            )
        return found

    def list(self, prefix: str) -> list[ObjectInfo]:
        folder = self._prefix + "".join(f"{part}/" for part in check_folder(prefix))
        found: list[ObjectInfo] = []
        with self._explained(prefix, missing=RepositoryUnavailable):
            for chunk in obstore.list(self._store, folder or None, chunk_size=_LIST_CHUNK):
                for meta in chunk:
                    name = meta["path"].removeprefix(self._prefix)
                    if is_name(name) and meta["path"].startswith(folder):
                        modified_us = int(meta["last_modified"].timestamp() * 1e6)
                        found.append(ObjectInfo(name, meta["size"], modified_us))
                if len(found) > LISTED_MAX:
                    raise RepositoryError(
                        f"more than {LISTED_MAX} objects below one folder",
                        destination=self._name,
                    )
        return sorted(found)

    def delete(self, name: str) -> None:
        try:
            obstore.delete(self._store, self._path(name))
        except FileNotFoundError:
            return
        except BaseError as error:
            if _is_denied(error):
                raise DeletionDenied(
                    _reason(error), destination=self._name, object_name=name
                ) from error
            raise self._error(name, error, RepositoryUnavailable) from error

    def close(self) -> None:
        pass  # Connections end with the store.

    def _path(self, name: str) -> str:
        check_name(name)
        return self._prefix + name

    def _size(self, path: str) -> int | None:
        """An object's size; None if it is missing."""
        try:
            return obstore.head(self._store, path)["size"]
        except FileNotFoundError:
            return None

    @contextmanager
    def _explained(
        self, name: str, *, missing: type[RepositoryError] = ObjectMissing
    ) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError) as error:
            raise self._error(name, error, missing) from error

    def _error(
        self, name: str, error: Exception, missing: type[RepositoryError]
    ) -> RepositoryError:
        kind: type[RepositoryError] = RepositoryUnavailable
        reason, hint = _reason(error), ""
        if isinstance(error, FileNotFoundError):
            kind = missing
            if missing is RepositoryUnavailable:
                hint = "does the bucket exist?"
            else:
                reason = "it is missing"
        elif isinstance(error, AlreadyExistsError | PreconditionError):
            kind, reason = ObjectExists, "it exists"
        elif _is_denied(error):
            hint = "look at the credentials in the environment, and at the bucket's policy"
        elif isinstance(error, NotSupportedError):
            hint = "if the server can't do conditional puts, add conditions=off to the URL"
        elif "invalid path" in reason:  # obstore can't list a bucket with such a name in it.
            kind, hint = RepositoryError, "delete this object: its name is none that raftha makes"
        return kind(reason, destination=self._name, object_name=name, hint=hint)


def open_store(name: str, url: str, *, retries: int = RETRIES_MAX) -> ObjectStoreDestination:
    """Open the bucket that `url` names; nothing is contacted. ConfigError if it names none."""
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            f"the URL of the backup destination {name} has credentials in it",
            hint="they belong into the environment, such as AWS_ACCESS_KEY_ID",
        )
    given = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = given.keys() - _PARAMETERS[parts.scheme]
    if unknown or parts.fragment or not parts.netloc:
        known = ", ".join(sorted(_PARAMETERS[parts.scheme]))
        raise ConfigError(
            f"the URL of the backup destination {name} is wrong: "
            + (f"unknown {sorted(unknown)}" if unknown else "no bucket"),
            hint=f"{parts.scheme}://bucket/prefix, with the parameters {known}; "
            "credentials come from the environment",
        )
    prefix = unquote(parts.path).strip("/")
    try:
        check_folder(prefix)
        store = _STORES[parts.scheme](parts.netloc, given, _client(given), _retry(retries))
    except (BaseError, ValueError, OSError) as error:
        raise ConfigError(f"the backup destination {name}: {_reason(error)}") from error
    has_conditions = given.get("conditions", "on") != "off"
    return ObjectStoreDestination(
        name, store, f"{prefix}/" if prefix else "", has_conditions=has_conditions
    )


def _client(given: Mapping[str, str]) -> ClientConfig:
    options: ClientConfig = {
        "timeout": timedelta(seconds=TIMEOUT_S),
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
        "allow_http": given.get("endpoint", "").startswith("http://"),
    }
    if "ca" in given:
        options["root_certificate"] = Path(given["ca"]).read_bytes()
    return options


def _retry(retries: int) -> RetryConfig:
    return {"max_retries": retries, "retry_timeout": timedelta(seconds=RETRY_S)}


def _s3(
    bucket: str, given: Mapping[str, str], client: ClientConfig, retry: RetryConfig
) -> ObjectStore:
    options: dict[str, Any] = {
        name: given[name] for name in ("region", "endpoint") if name in given
    }
    if given.get("virtual_hosted") == "true":
        options["virtual_hosted_style_request"] = True
    return S3Store(bucket, client_options=client, retry_config=retry, **options)


def _gcs(
    bucket: str, given: Mapping[str, str], client: ClientConfig, retry: RetryConfig
) -> ObjectStore:
    del given
    # The fake of the tests is plain HTTP; its address comes with the credentials.
    client["allow_http"] = True
    return GCSStore(bucket, client_options=client, retry_config=retry)


def _azure(
    container: str, given: Mapping[str, str], client: ClientConfig, retry: RetryConfig
) -> ObjectStore:
    options: dict[str, Any] = {}
    if "account" in given:
        options["account_name"] = given["account"]
    if "endpoint" in given:
        options["endpoint"] = given["endpoint"]
    return AzureStore(container, client_options=client, retry_config=retry, **options)


_STORES: dict[str, Callable[[str, Mapping[str, str], ClientConfig, RetryConfig], ObjectStore]] = {
    "s3": _s3,
    "gs": _gcs,
    "az": _azure,
}


def _is_denied(error: Exception) -> bool:
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return True
    # Lists have one kind of error only, and S3 reports denied deletes within an answer of success.
    return any(sign in str(error) for sign in (" 403 ", " 401 ", "AccessDenied"))


def _reason(error: Exception) -> str:
    """The first line of an error's message: obstore adds pages of details."""
    line = str(error).strip().split("\n", 1)[0]
    return line[:_REASON_CHARS] or type(error).__name__
