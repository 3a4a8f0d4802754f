"""What a caller wants recovered, as the payload of its request to the leader."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgpack

from raftha.errors import WireError
from raftha.storage.state.recoveries import TIMEOUT_MAX_S

SEQUENCE, TIME = "sequence", "time"
TEXT_MAX = 200


class RecoveryWanted(NamedTuple):
    """A recovery that is asked for.

    `request`: a random number that tells it from all others, also if it is repeated. `kind` and
    `number`: the target, a sequence or a time in microseconds. `lineage`: "" for that of this
    cluster. `is_frozen`: writes stop at once, and not just before the switch. `reason`: what was
    asked for, for people.
    """

    request: int
    kind: str
    number: int
    lineage: str
    is_frozen: bool
    timeout_s: int
    reason: str

    def pack(self) -> bytes:
        """Return the payload."""
        packed: bytes = msgpack.packb(list(self))
        return packed

    @classmethod
    def unpack(cls, payload: bytes) -> RecoveryWanted:
        """Return what a payload says. WireError."""
        try:
            fields: Any = msgpack.unpackb(payload, use_list=False, max_array_len=16, max_map_len=0)
        except (ValueError, msgpack.UnpackException) as error:
            raise WireError(f"a recovery that is asked for is not msgpack: {error}") from error
        kinds = (int, str, int, str, bool, int, str)
        if type(fields) is not tuple or tuple(map(type, fields)) != kinds:
            raise WireError("a recovery that is asked for has wrong fields")
        wanted = cls(*fields)
        numbers = wanted.request, wanted.number
        if wanted.kind not in (SEQUENCE, TIME) or not all(0 <= n < 1 << 63 for n in numbers):
            raise WireError("a recovery that is asked for has no such target")
        if not 0 < wanted.timeout_s <= TIMEOUT_MAX_S:
            raise WireError("a recovery that is asked for has no such time limit")
        if max(len(wanted.lineage), len(wanted.reason)) > TEXT_MAX:
            raise WireError("a recovery that is asked for has too long a text")
        return wanted


def pack_abort(recovery_id: int) -> bytes:
    """Return the payload of a request to give up a recovery; 0 for the one under way."""
    packed: bytes = msgpack.packb(recovery_id)
    return packed


def unpack_abort(payload: bytes) -> int:
    """Return the recovery to give up. WireError."""
    try:
        found: Any = msgpack.unpackb(payload)
    except (ValueError, msgpack.UnpackException) as error:
        raise WireError(f"a recovery to give up is not msgpack: {error}") from error
    if type(found) is not int or not 0 <= found < 1 << 63:
        raise WireError("a recovery to give up is a number")
    return found
