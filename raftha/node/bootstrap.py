"""What a node starts from: its core and its membership, from its settings and its disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from raftha.config import HaConfig
from raftha.core import CoreConfig, Raft, RaftLog
from raftha.entry import Entry, HardState
from raftha.membership import Member, Membership
from raftha.storage.state.state import State

HEARTBEAT_TICKS = 5
"""The number of the core's ticks in a heartbeat interval."""


def applied_membership(state: State, config: HaConfig) -> Membership:
    """Return the membership that the state has applied."""
    return decode_membership(state.membership, config)


def decode_membership(payload: bytes | None, config: HaConfig) -> Membership:
    """Decode the membership in an entry's payload; None stands for a log before its first entry.

    Such a node knows the nodes in its settings, and that none of them is a voter yet.
    """
    if payload is None:
        members = configured_members(config)
        return Membership({i: m._replace(is_voter=False) for i, m in members.items()})
    return Membership.decode(payload)


def configured_members(config: HaConfig) -> Mapping[int, Member]:
    """The members that the settings name."""
    return Membership.first(config.members, config.regions_by_member).members


def make_core(
    config: HaConfig,
    hard_state: HardState,
    first_index: int,
    state: State,
    entries: Sequence[Entry],
    random_below: Callable[[int], int],
    *,
    healing_generation: int,
    promised_ms: int,
    clock_ns: Callable[[], int],
    time_us: Callable[[], int],
) -> Raft:
    """Make the core of a node with this data on its disk.

    `entries` follow the last entry that `state` has applied. `promised_ms` is the longest lease
    promise that the node may have given. UpgradeRequired if the committed log uses what this node
    doesn't support.
    """
    core_config = CoreConfig(
        node_id=config.node_id,
        heartbeat_ticks=HEARTBEAT_TICKS,
        election_ticks=config.election_timeout_ms * HEARTBEAT_TICKS // config.heartbeat_interval_ms,
        campaigns=config.auto_failover,
        regions=config.regions,
        lease_ms=config.lease_ms,
        promised_ms=promised_ms,
        clock_drift_max=config.clock_drift_max,
    )
    state.check_supported(e for e in entries if e.index <= hard_state.commit)
    membership = applied_membership(state, config)
    log = RaftLog(first_index, state.applied, entries, core_config.window_bytes_max, membership)
    return Raft(core_config, hard_state, log, random_below, healing_generation, clock_ns, time_us)
