"""Make one survivor the whole cluster, after a majority was lost for good.

Theory of operation. Without a majority nothing can be committed, not even a change of membership.
If the lost nodes will never return, an operator can decide to go on without them. This is done
offline, on one survivor, with its data directory locked. No protocol can establish that the other
nodes are really gone; that is the operator's responsibility. The only check is whether they answer.

The steps, in an order in which a crash leaves either the old or the new cluster intact. The start
after a crash between the last two finishes the recovery (`finish_recovery`):

1. Write a record of the recovery to the data directory.
2. Append one write to the log: a hard state of a new term, and a MEMBERSHIP entry of that term with
   this node as the only member and all others as removed. The hard state's commit index includes
   that entry, and so everything that the log holds: acknowledged writes that are here stay. The
   entry begins a new lineage, and records a new incarnation of this node.
3. Give the directory that incarnation. If the node was healing from the loss of its log, that ends:
   no member is left that could send the missing entries.

The node then starts as a cluster of one. It and the members of the old cluster refuse each other
for their lineages: should a majority of them live on out of sight after all, it keeps its data and
serves on. The old ids can't be used again; new nodes need new ids.

Recover the survivor whose log ends last: the highest term of the last entry first, then the highest
index. Acknowledged writes that are not in its log are lost.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from raftha.config import HaConfig, parse_address
from raftha.core import RaftLog
from raftha.entry import Entry, EntryKind, HardState, make_entry
from raftha.errors import ConfigError, InvalidRequest
from raftha.membership import Member, Membership
from raftha.node.bootstrap import applied_membership
from raftha.runtime.founding import new_id
from raftha.storage.directory.datadir import DataDirectory, new_incarnation
from raftha.storage.directory.healing import OpenNode
from raftha.storage.directory.replay import entries_after
from raftha.storage.directory.snapshot import install
from raftha.storage.log.disk import RealDisk
from raftha.storage.log.wal import Wal
from raftha.storage.state.checkpoint import CheckpointStore
from raftha.storage.state.state import State
from raftha.version import VERSION

ANSWER_TIMEOUT_S = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class LostMember:
    """A member that the recovery removes; `answers` if something listens at its address."""

    node_id: int
    address: str
    is_voter: bool
    answers: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The facts that a recovery finds, and the changes that it makes.

    `last_index`, `last_term`, `last_sequence` and `last_time` describe the end of this node's log;
    compare survivors by (last_term, last_index). `commit_index` is the last index that the node
    knew to be committed. `term` is the new term, `index` that of the entry with the new membership.
    A node that `is_healing` has lost its log and may lack entries that others have: choose it last.
    """

    node_id: int
    cluster_id: str
    data_dir: str
    was_voter: bool
    is_healing: bool
    last_index: int
    last_term: int
    last_sequence: int
    last_time: str
    commit_index: int
    lost: tuple[LostMember, ...]
    removed_before: tuple[int, ...]
    term: int
    index: int

    @property
    def is_quorum_there(self) -> bool:
        """True if the members that answer and this node are a majority."""
        voters = [member for member in self.lost if member.is_voter]
        answering = sum(member.answers for member in voters)
        return 2 * (answering + self.was_voter) > len(voters) + self.was_voter

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as a dict, for JSON."""
        return dataclasses.asdict(self)


class StoppedNode(NamedTuple):
    """What is open of a node that doesn't run."""

    data: DataDirectory
    wal: Wal
    log: RaftLog
    state: State


class Survivor:
    """A stopped node's data directory, open for inspection and recovery."""

    def __init__(self, config: HaConfig, data: DataDirectory, wal: Wal, log: RaftLog) -> None:
        self._config = config
        self._data = data
        self._wal = wal
        self._log = log

    def plan(self) -> Plan:
        """Return what `recover` would do; InvalidRequest if there is nothing to recover here."""
        node_id, membership = self._config.node_id, self._log.membership
        if node_id not in membership.members:
            raise InvalidRequest(
                f"node {node_id} is not a member of the cluster by its own log",
                hint="recover a node that was a member when the majority was lost",
            )
        if membership.voters == (node_id,) and not self._data.is_healing:
            raise InvalidRequest(
                f"node {node_id} is the only voter already", hint="start it: it needs no others"
            )
        last, hard_state = self._log.last, self._wal.hard_state
        return Plan(
            node_id=node_id,
            cluster_id=self._data.cluster_id,
            data_dir=str(self._data.path),
            was_voter=membership.members[node_id].is_voter,
            is_healing=self._data.is_healing,
            last_index=last.index,
            last_term=last.term,
            last_sequence=last.last_sequence,
            last_time=_time_text(last.time_us),
            commit_index=self._log.commit,
            lost=tuple(
                LostMember(
                    node_id=other,
                    address=member.address,
                    is_voter=member.is_voter,
                    answers=_answers(member.address),
                )
                for other, member in sorted(membership.members.items())
                if other != node_id
            ),
            removed_before=tuple(sorted(membership.removed)),
            term=max(hard_state.term, last.term) + 1,
            index=last.index + 1,
        )

    def recover(self, plan: Plan) -> Path:
        """Carry out `plan`, made by this object; return the path of its record."""
        record = self._write_record(plan)
        incarnation = new_incarnation()
        entry = self._make_entry(plan, incarnation)
        assert entry.index == plan.index
        self._wal.append(HardState(plan.term, plan.node_id, entry.index), (entry,))
        self._data.renew_incarnation(incarnation)
        logger.warning(
            "quorum recovered node=%d term=%d index=%d removed=%s record=%s",
            plan.node_id,
            plan.term,
            plan.index,
            ",".join(str(member.node_id) for member in plan.lost),
            record,
        )
        return record

    def _make_entry(self, plan: Plan, incarnation: int) -> Entry:
        before = self._log.membership
        region = before.members[plan.node_id].region
        own = Member(self._config.own_address, region, incarnation=incarnation)
        removed = before.removed | before.members.keys() - {plan.node_id}
        after = Membership({plan.node_id: own}, removed, before.cluster_id, new_id())
        payload = after.encode()
        return make_entry(self._log.last, plan.term, 0, EntryKind.MEMBERSHIP, payload, 0)

    def _write_record(self, plan: Plan) -> Path:
        now = datetime.now(UTC)
        path = self._data.path / f"recover-quorum-{now:%Y%m%dT%H%M%S.%fZ}.json"
        document = {"time": now.isoformat(), "raftha_version": VERSION, **plan.as_dict()}
        path.touch(0o600, exist_ok=False)
        with path.open("w", encoding="utf-8") as file:
            json.dump(document, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        RealDisk().sync_dir(str(self._data.path))
        return path


@contextmanager
def open_survivor(config: HaConfig) -> Iterator[Survivor]:
    """Open a stopped node's data directory to recover it. Raises as `open_stopped`."""
    with open_stopped(config) as stopped:
        yield Survivor(config, stopped.data, stopped.wal, stopped.log)


@contextmanager
def open_stopped(config: HaConfig) -> Iterator[StoppedNode]:
    """Open a stopped node's data directory; changes no more than a start of the node would.

    ConfigError if it doesn't exist, is in use, belongs to another node, or has nothing of a cluster
    yet; StorageError if it is damaged.
    """
    path = Path(config.data_dir)
    if not (path / "identity").exists():
        raise ConfigError(f"{path} is not the data directory of a node")
    data = DataDirectory(path, config.cluster_name, config.node_id)
    try:
        if data.lost:
            raise ConfigError(
                f"a start of node {config.node_id} was interrupted while it replaced damaged files",
                hint="start the node once before you do this",
            )
        wal = Wal.open(
            RealDisk(),
            str(path / "wal"),
            segment_bytes=config.wal_segment_bytes,
            salt=lambda: secrets.randbits(64),
        )
        try:
            # Install a snapshot that is ready first: later it would replace what is written here.
            install(path, wal)
            store = CheckpointStore(path / "state")
            try:
                state = State(store, None)
                log = _read_log(config, state, wal)
                _check_has_cluster(log, data)
                yield StoppedNode(data, wal, log, state)
            finally:
                store.close()
        finally:
            wal.close()
    finally:
        data.close()


def finish_recovery(data: DataDirectory, opened: OpenNode) -> None:
    """Give the directory the incarnation that a recovery has recorded, if a crash prevented that.

    A committed membership whose only voter is this node, with an incarnation that this directory
    has never had, comes from nothing else: no other node could have agreed to it.
    """
    payload, commit = opened.state.membership, opened.wal.hard_state.commit
    for entry in opened.entries:
        if entry.kind == EntryKind.MEMBERSHIP and entry.index <= commit:
            payload = bytes(entry.payload)
    membership = Membership.decode(payload) if payload is not None else Membership({})
    if membership.voters == (data.node_id,) and not membership.knows(
        data.node_id, data.incarnation
    ):
        logger.warning("node=%d finishes a recovery that was cut off", data.node_id)
        data.renew_incarnation(membership.recorded(data.node_id))


def _read_log(config: HaConfig, state: State, wal: Wal) -> RaftLog:
    entries = entries_after(wal, state.applied, Path(config.data_dir) / "wal")
    membership = applied_membership(state, config)
    log = RaftLog(wal.first_index, state.applied, entries, 0, membership)
    log.commit = max(log.commit, min(wal.hard_state.commit, log.last_index))
    return log


def _check_has_cluster(log: RaftLog, data: DataDirectory) -> None:
    """A log without a membership is that of a node that was never a member, or lost its disk."""
    if not log.membership.cluster_id:
        raise ConfigError(
            f"data_dir {data.path} is empty: it has no membership, and no data, of any cluster",
            hint="choose a node that has data; an empty one can only join a cluster, or found one",
        )


def _answers(address: str) -> bool:
    try:
        socket.create_connection(parse_address("address", address), ANSWER_TIMEOUT_S).close()
    except (OSError, UnicodeError):
        return False
    return True


def _time_text(time_us: int) -> str:
    return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat() if time_us else ""
