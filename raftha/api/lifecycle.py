"""What both managers check and report while their node doesn't run."""

from __future__ import annotations

from raftha.config import HaConfig
from raftha.errors import ConfigError, Forked, InvalidRequest, Stopped
from raftha.runtime.runtime import Runtime
from raftha.types import HaStatus

NOT_STARTED = "the node was not started"


def check_asserts() -> None:
    """Raise ConfigError if Python runs without asserts."""
    if not __debug__:
        raise ConfigError(
            "raftha does not run under python -O",
            hint="its asserts stop a node before it damages data",
        )


def last_status(runtime: Runtime | None, config: HaConfig) -> HaStatus:
    """The status of a node that was not started here, or has ended. Raises Forked in a child."""
    if runtime is None:
        return HaStatus.unstarted(config.node_id)
    if runtime.is_inherited:
        raise Forked
    return runtime.node.status()


def learners_of(status: HaStatus, region: str) -> tuple[int, ...]:
    """The ids of a region's learners. Raises InvalidRequest if the region has no members."""
    if not status.is_running:
        raise Stopped("the node is not running")
    members = [replica for replica in status.replicas if replica.region == region]
    if not members:
        raise InvalidRequest(f"no member is in region {region!r}")
    return tuple(replica.node_id for replica in members if not replica.is_voter)
