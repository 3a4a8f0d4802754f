"""`ReplicationConfig`: when writes are acknowledged, and when a replica counts as lagging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, TypeAlias

from raftha.config.checks import Range, check
from raftha.config.limits import DAY_MS, MEMBERS_MAX, TIMEOUT_S_MAX
from raftha.errors import ConfigError
from raftha.types import ReplicationMode

Voters: TypeAlias = Annotated[int, Range(1, MEMBERS_MAX, unit="voters")]
LagMs: TypeAlias = Annotated[int, Range(1, DAY_MS, unit="ms")]
HeartbeatMs: TypeAlias = Annotated[int, Range(10, 1_000, unit="ms")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationConfig:
    """When writes are acknowledged, and when a replica counts as lagging.

    `replication_factor`, `max_lag_ms`, `auto_failover` and `heartbeat_interval_ms` are settings of
    `HaConfig` too. Set each in one of the two places: `HaConfig` copies it to the other one.
    """

    replication_factor: Voters = 3
    """The same as `HaConfig.replication_factor`."""

    mode: ReplicationMode = ReplicationMode.ASYNC_WITH_ACK
    """When the caller of a write gets its receipt, unless the call names another mode.
    `async_with_ack` waits for a majority of the voters, or for `write_quorum` of them. `sync` waits
    for all voters: a voter that is down delays each write by `ack_timeout_ms`, and the call then
    raises `AcknowledgementTimeout`. `async_fire_forget` doesn't wait. A write is committed once it
    is on the disks of a majority, in every mode."""

    max_lag_ms: LagMs = 5000
    """The same as `HaConfig.max_replication_lag_ms`."""

    write_quorum: Annotated[int, Range(0, MEMBERS_MAX, unit="voters")] = 0
    """With `async_with_ack`, the number of voters that have a write on disk before its caller gets
    the receipt. 0 stands for a majority. A number below a majority of the voters, or above their
    number, is refused. A larger quorum means more copies at the time of the receipt, and a longer
    wait whenever one of these voters is slow."""

    ack_timeout_ms: Annotated[int, Range(1, TIMEOUT_S_MAX * 1000, unit="ms")] = 1000
    """How long a committed write waits for more acknowledgements than a majority's. After that the
    call raises `AcknowledgementTimeout`, although the write stays. With `sync` and with
    `write_quorum`, set it above the slowest round trip between members plus one disk sync."""

    auto_failover: bool = True
    """The same as `HaConfig.auto_failover`."""

    heartbeat_interval_ms: HeartbeatMs = 50
    """The same as `HaConfig.heartbeat_interval_ms`."""

    def __post_init__(self) -> None:
        check(self)

    def check_quorum(self, voters: int) -> None:
        """ConfigError unless `write_quorum` is 0, or a majority of `voters` to all of them."""
        if self.write_quorum and not voters // 2 < self.write_quorum <= voters:
            raise ConfigError(
                f"write_quorum must be 0, or from {voters // 2 + 1} to {voters} with {voters}"
                f" voters, got {self.write_quorum}",
                hint="0 stands for a majority",
            )
