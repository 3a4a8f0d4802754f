"""RAFTHA PITR and RAFTHA RECOVER: which moments there are, and the way back to one.

What only reads the node's own copy of the log is a command of its own, because it is asked often,
and needs no admin's token. Times are microseconds since 1970 UTC.
"""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime, timedelta
from typing import Any

from raftha.client.resp import ReplyError
from raftha.recovery import RecoveryPoint
from raftha.server.machine import parse_int64
from raftha.server.tasks import SYNTAX_ERROR, Action, Arguments, Service, act

WAIT_S_MAX = 7 * 86_400
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


async def pitr(service: Service, _: Arguments) -> bytes:
    """RAFTHA PITR."""
    pitr, status = service.ha.pitr, await service.ha.get_status()
    drill = await pitr.get_last_drill()
    told = {
        "has_settings": service.ha.config.archive is not None,
        "sequence": await pitr.get_current_sequence(),
        "pitr_sequence": status.pitr_sequence,
        "rpo_ms": status.rpo_ms,
        "archive": None if status.archive is None else dataclasses.asdict(status.archive),
        "drill": None if drill is None else drill.as_dict(),
        "points": [dataclasses.asdict(each) for each in await pitr.list_recovery_points()],
        "recoveries": [dataclasses.asdict(each) for each in await pitr.list_recoveries()],
    }
    return json.dumps(told).encode()


async def recover(service: Service, request: Arguments) -> Any:
    """RAFTHA RECOVER action ..."""
    return await act(_ACTIONS, service, request)


async def _mark(service: Service, name: bytes) -> bytes:
    return _point(await service.ha.pitr.mark(name.decode(errors="replace")))


async def _checkpoint(service: Service, wait_s: bytes = b"60") -> bytes:
    return _point(await service.ha.pitr.capture_checkpoint(timeout=_seconds(wait_s, 600)))


async def _window(service: Service) -> bytes:
    return json.dumps((await service.ha.pitr.window()).as_dict()).encode()


async def _plan(service: Service, kind: bytes, value: bytes) -> bytes:
    plan = await service.ha.pitr.plan(_target(kind, value))
    return json.dumps(plan.as_dict()).encode()


async def _to(
    service: Service, kind: bytes, value: bytes, freeze: bytes = b"SWITCH", wait_s: bytes = b"0"
) -> bytes:
    pitr, target = service.ha.pitr, _target(kind, value)
    options: dict[str, Any] = {
        "freeze": freeze.decode(errors="replace").lower(),
        "timeout": _seconds(wait_s, WAIT_S_MAX) if wait_s != b"0" else None,
    }
    if isinstance(target, datetime):
        result = await pitr.recover_to_timestamp(target, **options)
    elif isinstance(target, int):
        result = await pitr.recover_to_sequence(target, **options)
    else:
        result = await pitr.recover_to_mark(target, **options)
    return json.dumps(dataclasses.asdict(result)).encode()


async def _undo(service: Service, freeze: bytes = b"SWITCH", wait_s: bytes = b"0") -> bytes:
    result = await service.ha.pitr.undo(
        freeze=freeze.decode(errors="replace").lower(),
        timeout=_seconds(wait_s, WAIT_S_MAX) if wait_s != b"0" else None,
    )
    return json.dumps(dataclasses.asdict(result)).encode()


async def _abort(service: Service) -> str:
    await service.ha.pitr.abort_recovery()
    return "OK"


async def _drill(service: Service, kind: bytes = b"", value: bytes = b"") -> bytes:
    report = await service.ha.pitr.drill(_target(kind, value) if kind else None)
    return json.dumps(report.as_dict()).encode()


def _target(kind: bytes, value: bytes) -> datetime | int | str:
    match kind.upper():
        case b"TIME":
            try:
                return _EPOCH + timedelta(microseconds=parse_int64(value))
            except OverflowError as error:
                raise ReplyError("ERR a time is given in microseconds since 1970") from error
        case b"SEQUENCE":
            return parse_int64(value)
        case b"MARK":
            return value.decode(errors="replace")
    raise ReplyError(SYNTAX_ERROR)


def _seconds(given: bytes, most: int) -> float:
    return min(max(parse_int64(given), 1), most)


def _point(point: RecoveryPoint) -> bytes:
    return json.dumps(dataclasses.asdict(point)).encode()


_ACTIONS: dict[bytes, Action] = {
    b"MARK": (_mark, 1, 1),
    b"CHECKPOINT": (_checkpoint, 0, 1),
    b"WINDOW": (_window, 0, 0),
    b"PLAN": (_plan, 2, 2),
    b"TO": (_to, 2, 4),
    b"UNDO": (_undo, 0, 2),
    b"ABORT": (_abort, 0, 0),
    b"DRILL": (_drill, 0, 2),
}
"""Each action, and how many arguments it takes."""
