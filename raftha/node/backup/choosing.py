"""Which backup is due, which member takes it, and what it builds on. Pure decisions.

Theory of operation. All of it follows from the catalog, the settings, the time, and what the
members say that they can do. So a new leader goes on where the one before it was: it counts the
failures since the last completed backup from the catalog too.

A backup is due when the last one began an interval ago. One that failed, scheduled or not, is tried
up to `RETRY_TIMES` times: the second time at once, then after pauses. After that it is due when the
schedule says so, with pauses of up to `RETRY_MAX_S`. Members whose last tries failed come last.

An incremental backup needs a member that has recorded the changes since the parent. Otherwise a
full one is taken, and its record says why.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

from raftha.config.backup import BackupConfig
from raftha.storage.backup.recovery import Rates
from raftha.storage.state.catalog import (
    COMPLETED,
    FAILED,
    FULL,
    INCREMENTAL,
    BackupRecord,
    Catalog,
)

RETRY_S, RETRY_MAX_S = 60, 3600
RETRY_TIMES = 3
AGAIN_S = 86_400
"""A destination where the last full backup failed has no other one begun before this time."""
CHAIN_MAX = 28
"""Incremental backups after a full one."""
EARLY_SHARE = 0.1
"""The share of the restore time wanted that the log must take before a backup is due early."""
_SECOND = 1_000_000
_STANDBY, _FOLLOWER, _LEADER = "standby", "follower", "leader"


class Candidate(NamedTuple):
    """A member that can take a backup. `spool_index`: it has the changes since this entry."""

    node_id: int
    kind: str
    lag: int
    spool_index: int | None


class Choice(NamedTuple):
    """The backup to take, as in `Begin`."""

    node: int
    mode: str
    parent: int
    destinations: tuple[str, ...]
    reason: str


def kind_of(*, is_leader: bool, is_voter: bool) -> str:
    """What a member counts as in `BackupConfig.backup_from`."""
    if is_leader:
        return _LEADER
    return _FOLLOWER if is_voter else _STANDBY


def failures(catalog: Catalog) -> list[BackupRecord]:
    """The tries since the last completed backup, all failed; the newest first."""
    found: list[BackupRecord] = []
    for record in reversed(catalog.records()):
        if record.state == COMPLETED:
            break
        if record.state == FAILED:
            found.append(record)
    return found


def due_us(config: BackupConfig, catalog: Catalog, lineage: str, *, is_urgent: bool = False) -> int:
    """The log time at which a backup is due; 0 for at once, as when it `is_urgent`."""
    last = catalog.newest(lineage)
    due = 0
    if last is not None and not is_urgent:
        due = last.began_us + round(config.interval_hours * 3600 * _SECOND)
    failed = failures(catalog)
    if not failed:
        return due
    tries = len(failed)
    pause_s = min(RETRY_S * 2 ** min(tries - 2, 20), RETRY_MAX_S) if tries > 1 else 0
    retry = failed[0].ended_us + round(pause_s * _SECOND)
    return retry if tries < RETRY_TIMES else max(due, retry)


def is_slow(
    config: BackupConfig, catalog: Catalog, lineage: str, sequence: int, rates: Rates
) -> bool:
    """Whether a restore of everything up to `sequence` would take too long, and a backup helps."""
    newest = catalog.newest(lineage)
    if newest is None or not config.rto_target_s:
        return False
    replay_s = max(0, sequence - newest.position_sequence) / rates.replay_commands_per_s
    total_s = _restore_s(catalog.chain(newest.id), rates) + replay_s
    return total_s > config.rto_target_s and replay_s > EARLY_SHARE * config.rto_target_s


def _restore_s(chain: Sequence[BackupRecord], rates: Rates) -> float:
    return sum(record.size_bytes for record in chain) / rates.restore_bytes_per_s


def choose(
    config: BackupConfig,
    catalog: Catalog,
    lineage: str,
    now_us: int,
    wanted: str,
    candidates: Sequence[Candidate],
    unreachable: Collection[str] = (),
    *,
    rates: Rates | None = None,
) -> Choice | None:
    """Choose a backup and its taker; None if no member can take one.

    `wanted` is a mode. `unreachable` are the destinations that couldn't be listed lately. `rates`
    are those of a restore.
    """
    failed = failures(catalog)
    able = _ranked(config, candidates, {record.node for record in failed})
    if not able:
        return None
    reason = "asked for"
    if wanted != FULL:
        reason = _why_full(config, catalog, lineage, now_us, unreachable, rates or Rates())
    if reason:
        return _full(config, able, "" if wanted == FULL else reason)
    parent = _parent(catalog, lineage, wanted)
    assert parent is not None, "a full one is due if there is none"
    recorded = [c for c in able if _covers(c, parent)]
    tries = [record for record in failed if record.parent == parent.id]
    if not recorded or len(tries) > 1:
        reason = f"no member that can take it has the changes since {parent.label}"
        if recorded:
            reason = f"{len(tries)} tries to build on {parent.label} failed: {tries[0].error:.200}"
        return _full(config, able, reason)
    where = _holders(config, catalog, parent)
    return Choice(recorded[0].node_id, wanted, parent.id, where, "")


def _ranked(
    config: BackupConfig, candidates: Sequence[Candidate], avoided: set[int]
) -> list[Candidate]:
    """The candidates that may take it, the best first; those that failed only if all did."""
    kinds = config.backup_from
    allowed = [c for c in candidates if c.kind in kinds]
    fresh = [c for c in allowed if c.node_id not in avoided] or allowed
    return sorted(fresh, key=lambda c: (kinds.index(c.kind), c.lag, c.node_id))


def _full(config: BackupConfig, able: Sequence[Candidate], reason: str) -> Choice:
    return Choice(able[0].node_id, FULL, 0, tuple(sorted(config.destinations)), reason)


def _covers(candidate: Candidate, parent: BackupRecord) -> bool:
    return candidate.spool_index is not None and candidate.spool_index <= parent.position_index


def _parent(catalog: Catalog, lineage: str, mode: str) -> BackupRecord | None:
    newest = catalog.newest(lineage)
    if newest is None or mode == INCREMENTAL:
        return newest
    return catalog.get(newest.base)


def _holders(config: BackupConfig, catalog: Catalog, parent: BackupRecord) -> tuple[str, ...]:
    """The configured destinations that have the whole chain of `parent`."""
    held = set(config.destinations)
    for record in catalog.chain(parent.id):
        held &= set(record.destinations)
    return tuple(sorted(held))


def lacking(config: BackupConfig, catalog: Catalog, lineage: str) -> tuple[str, ...]:
    """The configured destinations that lack the newest backup, or what it builds on."""
    newest = catalog.newest(lineage)
    if newest is None:
        return ()
    return tuple(sorted(set(config.destinations) - set(_holders(config, catalog, newest))))


def _why_full(
    config: BackupConfig,
    catalog: Catalog,
    lineage: str,
    now_us: int,
    unreachable: Collection[str],
    rates: Rates,
) -> str:
    """Why a full backup is due; "" if an incremental or differential one will do."""
    newest = catalog.newest(lineage)
    if newest is None:
        return "there is none to build on"
    base, chain = catalog.get(newest.base), catalog.chain(newest.id)
    assert base is not None, "a whole chain ends with its base"
    if now_us - base.began_us >= config.full_every_days * 86_400 * _SECOND:
        return f"the last full one is {config.full_every_days:g} days old"
    if not _holders(config, catalog, newest):
        return f"no destination that is configured has all that {newest.label} builds on"
    lacked = [
        name
        for name in lacking(config, catalog, lineage)
        if name not in unreachable and not _has_just_failed(name, base, now_us)
    ]
    if lacked:
        return f"{', '.join(lacked)} lacks what {newest.label} builds on"
    if len(chain) > CHAIN_MAX:
        return f"{CHAIN_MAX} backups build on the last full one"
    deltas = sum(record.size_compressed for record in chain[:-1])
    if 2 * deltas > base.size_compressed > 0 and len(chain) > 2:
        return "those since the last full one are half as large as it"
    total_s = _restore_s(chain, rates)
    if config.rto_target_s and _restore_s([base], rates) < config.rto_target_s < total_s:
        return f"a restore of the chain would take about {total_s:.0f} s"
    return ""


def _has_just_failed(name: str, base: BackupRecord, now_us: int) -> bool:
    """Whether the last full backup couldn't be put there, less than a day ago."""
    has_failed = any(error.partition(":")[0] == name for error in base.errors)
    return has_failed and now_us - base.began_us < AGAIN_S * _SECOND
