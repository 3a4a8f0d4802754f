"""RAFTHA BACKUPS and RAFTHA BACKUP: what there is of backups, and what an operator asks for.

What only reads is a command of its own, because it is asked often, and needs no admin's token.
"""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from typing import Any

from raftha.client.resp import ReplyError
from raftha.server.machine import parse_int64
from raftha.server.tasks import SYNTAX_ERROR, Action, Arguments, Service, act

WAIT_S_MAX = 7 * 86_400


async def backups(service: Service, _: Arguments) -> bytes:
    """RAFTHA BACKUPS."""
    backup = service.ha.backup
    has_settings = service.ha.config.backup is not None
    told = {
        "state": await backup.get_state(),
        "is_due": await backup.is_backup_due() if has_settings else None,
        "lineage": await backup.get_lineage(),
        "backups": [dataclasses.asdict(each) for each in await backup.list_backups()],
        "decisions": [each._asdict() for each in (await backup.explain() if has_settings else ())],
    }
    return json.dumps(told).encode()


async def backup(service: Service, request: Arguments) -> Any:
    """RAFTHA BACKUP action ..."""
    return await act(_ACTIONS, service, request)


async def _run(service: Service, *words: bytes) -> int:
    options = [word.decode(errors="replace") for word in words]
    if options[1:2] not in ([], ["WAIT"]) or len(options) == 2:
        raise ReplyError(SYNTAX_ERROR)
    mode = None if options[:1] in ([], ["-"]) else options[0].lower()
    if len(options) < 3:
        return await service.ha.backup.trigger_backup(mode)
    wait_s = min(max(parse_int64(words[2]), 1), WAIT_S_MAX)
    return await service.ha.backup.trigger_backup(mode, wait=True, timeout=wait_s)


async def _verify(service: Service, backup_id: bytes, level: bytes = b"1") -> bytes:
    reports = await service.ha.backup.verify_backup(parse_int64(backup_id), parse_int64(level))
    return json.dumps([dataclasses.asdict(report) for report in reports]).encode()


async def _expire(service: Service) -> bytes:
    decisions = await service.ha.backup.apply_retention()
    return json.dumps([each._asdict() for each in decisions]).encode()


async def _pin(service: Service, backup_id: bytes, name: bytes, until_us: bytes = b"0") -> str:
    until = None
    if until_us != b"0":
        try:
            until = datetime.fromtimestamp(parse_int64(until_us) / 1e6, UTC)
        except (ValueError, OverflowError, OSError) as error:
            raise ReplyError("ERR a time is given in microseconds since 1970") from error
    wanted = parse_int64(backup_id)
    await service.ha.backup.pin(wanted, name.decode(errors="replace"), until=until)
    return "OK"


async def _unpin(service: Service, backup_id: bytes, name: bytes = b"") -> str:
    await service.ha.backup.unpin(parse_int64(backup_id), name.decode(errors="replace"))
    return "OK"


async def _check(service: Service) -> bytes:
    checks = await service.ha.backup.check()
    return json.dumps([dataclasses.asdict(check) for check in checks]).encode()


_ACTIONS: dict[bytes, Action] = {
    b"RUN": (_run, 0, 3),
    b"VERIFY": (_verify, 1, 2),
    b"EXPIRE": (_expire, 0, 0),
    b"PIN": (_pin, 2, 3),
    b"UNPIN": (_unpin, 1, 2),
    b"CHECK": (_check, 0, 0),
}
"""Each action, and how many arguments it takes."""
