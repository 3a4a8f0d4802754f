"""The window of point-in-time recovery: which backups it begins with, and which log it needs.

Theory of operation. A recovery to a moment restores the newest backup before it, and replays the
log from there. So the window begins with the newest backup that is older than it, in each
destination by itself, and needs all log behind that. A recovery that was carried out in the window
goes back to an earlier moment: then it needs the backup and the log before that moment, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from raftha.storage.backup.retention import candidate_of, restorable_from
from raftha.storage.state.catalog import BackupRecord
from raftha.storage.state.recoveries import ABORTED, RecoveryRecord

US_PER_HOUR = 3_600_000_000


def keep_from(
    records: Sequence[BackupRecord],
    recoveries: Iterable[RecoveryRecord],
    destination: str,
    since_us: int,
) -> int:
    """Return the first entry that a recovery to a moment since then needs; 0 if it needs all.

    `records`: the backups of this lineage.
    """
    there = restorable_from([candidate_of(record, since_us) for record in records], destination)
    by_id = {record.id: record for record in records}
    usable = [by_id[candidate.id] for candidate in there]
    before = [record for record in usable if record.position_us <= since_us]
    if not before:
        return 0
    first = before[-1].position_index
    going_back = [each for each in recoveries if each.state != ABORTED]
    is_new = True
    while is_new:
        is_new = False
        for recovery in going_back:
            is_read = not recovery.index or recovery.index > first
            if is_read and (needed := _source(usable, recovery)) < first:
                first, is_new = needed, True
    return first + 1 if first else 0


def _source(usable: Sequence[BackupRecord], recovery: RecoveryRecord) -> int:
    """The position of the backup from which the recovery's target is reached; 0 if none is left."""
    fitting = (r.position_index for r in usable if r.position_sequence <= recovery.to_sequence)
    return max(fitting, default=0)


def read_by(recoveries: Iterable[RecoveryRecord], since_us: int) -> set[int]:
    """The ids of the backups that recoveries in the window, or one under way, go back to."""
    return {
        backup_id
        for recovery in recoveries
        if recovery.state != ABORTED and (not recovery.ended_us or recovery.ended_us >= since_us)
        for backup_id in recovery.backups
    }
