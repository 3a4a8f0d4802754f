"""The secret by which peers without TLS know each other, and the proof that one holds it.

Theory of operation. With `peer_secret_file` each side sends a random challenge in its `Hello`, new
for each connection. The dialler proves first, so a listener computes nothing for strangers, and the
listener proves when it accepts. A proof is an HMAC-SHA256 under the secret over

    the direction, the cluster's name, and of the prover and then of the other: id, cluster id and
    challenge

so it is worth nothing on another connection, for another id, in the other direction, or in another
cluster. The secret itself never travels. What follows the proof is neither encrypted nor signed: a
program that can change packets on their way can still do harm, which is what TLS is for.
"""

from __future__ import annotations

import hmac
import os
import secrets
from hashlib import sha256
from pathlib import Path

import msgpack

from raftha.errors import ConfigError
from raftha.net.tls import read_secret
from raftha.net.wire import Hello

SETTING = "peer_secret_file"
SECRET_BYTES_MIN, SECRET_BYTES_MAX = 16, 1024
CHALLENGE_BYTES = 16
ADVICE = f"give all members the same {SETTING}"
WRONG = f"it has another secret: {ADVICE}"


def load_secret(path: str | Path) -> bytes:
    """The secret in this file, without white space around it; b"" without a path. ConfigError."""
    if not path:
        return b""
    secret = read_secret(SETTING, Path(path)).strip()
    if not SECRET_BYTES_MIN <= len(secret) <= SECRET_BYTES_MAX:
        raise ConfigError(
            f"{SETTING} {path} must hold {SECRET_BYTES_MIN} to {SECRET_BYTES_MAX} bytes",
            hint="`openssl rand -hex 32` makes a good one",
        )
    return secret


def make_secret(path: Path) -> None:
    """Make a file with a new secret, for its owner only. ConfigError if it can't be made."""
    try:
        with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(secrets.token_hex(32) + "\n")
    except OSError as error:
        raise ConfigError(f"can't make {SETTING} {path}: {error.strerror}") from error


def new_challenge(secret: bytes) -> bytes:
    """The challenge for one connection; b"" without a secret."""
    return secrets.token_bytes(CHALLENGE_BYTES) if secret else b""


def missing(own: Hello, other: Hello, secret: bytes) -> str:
    """Why `other` can't prove anything; "" if it can, or if none of the two has a secret."""
    if not secret:
        return f"it asks for a secret, and this node has none: {ADVICE}" if other.challenge else ""
    if not other.challenge:
        return f"it has no secret: {ADVICE}"
    if len(other.challenge) != CHALLENGE_BYTES:
        return f"its challenge has {len(other.challenge)} bytes, not {CHALLENGE_BYTES}"
    # Against a node that has only sent back what it was sent.
    return "its challenge is this node's own" if other.challenge == own.challenge else ""


def prove(secret: bytes, prover: Hello, other: Hello, *, dials: bool) -> bytes:
    """The proof of `prover` towards `other`, with the Hellos that the two have sent."""
    said = [
        "raftha peer dials" if dials else "raftha peer listens",
        prover.cluster_name,
        *(prover.sender, prover.cluster_id, prover.challenge),
        *(other.sender, other.cluster_id, other.challenge),
    ]
    return hmac.digest(secret, msgpack.packb(said), sha256)


def is_proven(secret: bytes, proof: bytes, prover: Hello, other: Hello, *, dials: bool) -> bool:
    """Whether this is the proof of `prover` towards `other`."""
    return hmac.compare_digest(proof, prove(secret, prover, other, dials=dials))
