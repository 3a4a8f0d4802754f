"""`HaConfig`: how one node runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from raftha.config import tables
from raftha.config.addresses import is_loopback, parse_address
from raftha.config.backup import BackupConfig, Hours
from raftha.config.checks import Address, Length, Range, check, check_all_or_none, shown
from raftha.config.limits import (
    CLUSTER_NAME_BYTES_MAX,
    DAY_MS,
    GIB,
    KIB,
    MEMBERS_MAX,
    MIB,
    NODE_ID_MAX,
    REGION_BYTES_MAX,
    REGIONS_MAX,
    TIB,
    TIMEOUT_S_MAX,
    VALUE_BYTES_MAX,
)
from raftha.config.pitr import PitrConfig, RetentionHours
from raftha.config.replication import HeartbeatMs, LagMs, ReplicationConfig, Voters
from raftha.errors import ConfigError
from raftha.events import HaEvent

NodeId: TypeAlias = Annotated[int, Range(1, NODE_ID_MAX)]
PeerAddress: TypeAlias = Annotated[str, Address(needs_port=True)]
Region: TypeAlias = Annotated[str, Length(1, REGION_BYTES_MAX)]


@dataclass(frozen=True, slots=True, kw_only=True)
class HaConfig:
    """How one node runs.

    `cluster_name` must be the same on all members of a cluster. A cluster begins with `members` and
    `member_regions` of the node that founds it; later it records its members itself. All other
    settings may differ from member to member, and take effect at the next start. Members of one
    cluster should have the same times (`heartbeat_interval_ms`, `election_timeout_ms`, `lease_ms`,
    `clock_drift_max`).
    """

    node_id: NodeId
    """The id of this node, a key of `members` unless `address` is set. Never reuse the id of a node
    that was removed or that lost its disk."""

    data_dir: str | Path
    """The folder for log and state. It is created if missing, and locked while the node runs. Each
    node needs a folder of its own, on a local disk. In a TOML file, relative to the file."""

    members: Annotated[Mapping[NodeId, PeerAddress], Length(1, MEMBERS_MAX, unit="members")]
    """The nodes that the cluster starts with: id -> "host:port" of the peer listener. The cluster
    itself records members that join, move or leave later, and its record counts; of these, a node
    that runs already only uses its own address, to listen. Three members survive the loss of one,
    five the loss of two; an even number adds no safety."""

    address: Annotated[str, Address(or_empty=True, needs_port=True)] = ""
    """"host:port" of this node's peer listener, for a node that is added to a running cluster and
    therefore isn't in `members`. Leave it empty for the nodes in `members`."""

    cluster_name: Annotated[str, Length(1, CLUSTER_NAME_BYTES_MAX)] = "raftha"
    """The name of the cluster. Nodes refuse peers with another name. Clusters on the same network
    need different names."""

    client_address: Annotated[str, Address(or_empty=True)] = ""
    """"host:port" where the host process serves its own clients. It appears in statuses, so that
    clients find the other members; the node itself does not use it."""

    bootstrap: bool = False
    """Whether this node founds the cluster. It does so once, with an empty data directory, when all
    `members` are up and have no cluster either; then the setting has no effect any more. It may be
    set on all members. If one can't be started, use `raftha init` instead. A node that is alone in
    `members` needs neither."""

    replication_factor: Voters = 3
    """The number of voters that the cluster should have. With fewer it reports the state degraded;
    nothing else changes."""

    max_replication_lag_ms: LagMs = 5000
    """The lag above which a replica counts as lagging and a warning event is raised. It also limits
    a stalled leader: if its own commits stall for this long while a majority is healthy, it hands
    leadership over. Values below the usual pauses of disks and garbage collection cause false
    warnings and needless changes of leader."""

    auto_failover: bool = True
    """Whether followers start elections when the leader fails. Without it writes wait until an
    operator promotes a node (`failover_to`, `raftha failover`). The first leader of a new cluster
    is elected in either case."""

    health_check_interval_sec: Annotated[float, Range(0.1, 3600, unit="s")] = 30
    """How often all members and the node's own disk are checked, even if idle. Members that show a
    problem are checked twice an election timeout, whatever this is. A lower value finds an idle
    broken disk earlier. A check costs one small message a member and, on an idle node, one disk
    sync."""

    regions: Annotated[tuple[Region, ...], Length(1, REGIONS_MAX, unit="regions")] = ("primary",)
    """The regions of the cluster, those preferred for the leader first. Each stands once."""

    member_regions: Mapping[NodeId, Region] = field(default_factory=dict)
    """The region of each of `members`: id -> a name in `regions`. Members without an entry are in
    the first region. It counts when the cluster is founded; `raftha member move` changes it
    later."""

    replication: ReplicationConfig = field(default_factory=ReplicationConfig)
    """Modes and quorums, in TOML the table `[replication]`. A setting that is here and there may be
    set in either place; different values in both are refused."""

    on_event: Callable[[HaEvent], None] | None = None
    """Called with each event, in order, on a thread of its own. A slow function loses events, which
    `HaStatus.events_dropped` counts. Only in Python."""

    backup_interval_hours: Hours = 6
    """The time from one backup to the next. Only with `backup`; it may be set in either place."""

    backup: BackupConfig | None = None
    """When backups are taken, and where they go; in TOML the table `[backup]`. Without it this node
    takes no backups and asks for none."""

    enable_pitr: bool = True
    """Whether the cluster can be taken back to any moment. Only with `backup`: its destinations
    then get the log too."""

    pitr_retention_hours: RetentionHours = 168
    """How far back. Only with `backup`; it may be set here or in `pitr`."""

    pitr: PitrConfig = field(default_factory=PitrConfig)
    """How the log is archived and how a recovery runs, in TOML the table `[pitr]`. Only with
    `backup`."""

    insecure: bool = False
    """Allow peers on other machines without encryption or authentication. Everyone on the network
    can then read and change all data. Set it only where the network itself keeps out others, as a
    private or an encrypted one does."""

    tls_ca: str | Path = ""
    """The certificate of the cluster's own CA, a PEM file. With `tls_cert` and `tls_key`, peers
    speak mutual TLS, and members may be on other machines. Set all three or none. `raftha cert`
    makes the files."""

    tls_cert: str | Path = ""
    """The certificate of this node, signed by the key of `tls_ca`, a PEM file. It names the cluster
    and the node. A file that is replaced while the node runs is loaded within a minute."""

    tls_key: str | Path = ""
    """The private key of `tls_cert`, unencrypted, a PEM file that other users must not be able to
    read."""

    tls_revoked: str | Path = ""
    """A file of certificates that don't count any more: `node 3` or `serial 4f2a...` (hexadecimal)
    on each line. A node whose certificate is named is refused, and disconnected within a minute
    after the file has changed. Give all members the same file. Removing a node does the same for
    its id, for good."""

    peer_secret_file: str | Path = ""
    """A file with a secret that all members share, for peers without TLS: at least 16 bytes, which
    other users must not be able to read. Members refuse peers that don't have it. It is read at the
    start. `raftha init` makes it if it is missing; give all members the same file. The secret keeps
    out programs on the same machine; on a network that others can reach, only TLS protects."""

    heartbeat_interval_ms: HeartbeatMs = 50
    """How often the leader sends a heartbeat to each follower. `election_timeout_ms` must be at
    least 4 heartbeats. Keep it above the round trip between the members."""

    election_timeout_ms: Annotated[int, Range(40, 600_000, unit="ms")] = 500
    """How long a follower waits for a silent leader: it starts an election after 1 to 2 times this.
    At least 4 heartbeats. A low value makes failover faster and lets pauses of the network or of
    the process cost a change of leader. A leader whose connection breaks is replaced without this
    wait."""

    lease_ms: Annotated[int, Range(20, 600_000, unit="ms", or_zero=True)] = 0
    """How long followers promise to elect no other leader, so that the leader answers reads without
    a round of messages. 0 for no leases; otherwise from 2 heartbeats to `election_timeout_ms`. Set
    it only where `clock_drift_max` holds: with faster drift reads can be stale. A leader that dies
    is replaced up to this much later; one that is stopped in order is not."""

    clock_drift_max: Annotated[float, Range(0, 0.9)] = 0.2
    """With `lease_ms`, by how much one member's clock may run slower than another's, as a fraction.
    The default covers two clocks that chronyd slews at its fastest, 0.083, in opposite directions.
    A higher value is safer and shortens leases."""

    max_clock_offset_ms: Annotated[int, Range(100, DAY_MS, unit="ms")] = 5000
    """How far a member's wall clock may be from the one on which most voters agree. Beyond it the
    leader reports the member, doesn't stamp entries with that clock, and hands over if the clock is
    its own. Members that follow NTP stay within tens of milliseconds, and a smeared leap second
    within one second; the default leaves room for both. Safety never depends on wall clocks: only
    the times that commands see, and the expiry of sessions after an hour."""

    request_timeout_s: Annotated[float, Range(0, TIMEOUT_S_MAX, unit="s", above_low=True)] = 10.0
    """The deadline of a call that gives none. Keep it well above 2 `election_timeout_ms`, which a
    failover may take, so that calls survive one."""

    value_bytes_max: Annotated[int, Range(1, VALUE_BYTES_MAX, unit="bytes")] = MIB
    """The largest value that this node accepts in a write. Large values delay the writes behind
    them; split what is larger over several keys."""

    wal_segment_bytes: Annotated[int, Range(16 * MIB, GIB, unit="bytes", multiple_of=4 * KIB)] = (
        64 * MIB
    )
    """The size of a file of the log. Files are allocated in advance, and up to 2 spares are kept.
    Smaller files let a small disk free space in smaller steps."""

    max_wal_size: Annotated[int, Range(MIB, TIB, unit="bytes")] = 64 * MIB
    """The log, or the memory for the changes in it, after which a checkpoint starts. At twice that,
    with the last checkpoint still running, the node takes in no more log until it is done. A low
    value shortens the recovery at a start and writes the same keys more often."""

    log_retention_bytes: Annotated[int, Range(MIB, 1024 * TIB, unit="bytes")] = GIB
    """The log that is kept for members that are down or slow. A member that needs older log gets a
    snapshot, which takes longer. At least `max_wal_size`. Log that no checkpoint
    covers yet is kept in addition. Plan the disk for it, for the state, for a copy of the state
    while a snapshot is made, and for `disk_reserve_bytes`."""

    disk_reserve_bytes: Annotated[int, Range(0, TIB, unit="bytes")] = 64 * MIB
    """Space that is reserved in the data directory, so that a full disk can still take a
    checkpoint. 0 for none. While the disk has no room for the reserve, writes are refused with
    `StorageFull`. Raise it together with `max_wal_size`."""

    snapshot_bytes_per_s: Annotated[int, Range(64 * KIB, TIB, unit="bytes/s", or_zero=True)] = 0
    """The highest rate at which snapshots are sent, over all receivers. 0 for no such limit. The
    leader lowers the rate by itself when snapshots slow down writes. A limit protects a shared
    network, and a member that needs a snapshot takes longer to catch up."""

    checkpoint_interval_sec: Annotated[float, Range(0.1, 86_400, unit="s")] = 60.0
    """The longest time between two checkpoints while anything is written. `max_wal_size` starts
    them earlier. A low value shortens the recovery at a start and writes more."""

    digest_interval_hours: Annotated[float, Range(0.0001, 8760, unit="hours", or_zero=True)] = 24
    """How often the leader compares the members' states, in the background; 0 means never. A member
    whose state differs from that of a majority replaces it. A comparison reads each member's whole
    state once: about 3 s for a million keys."""

    submit_queue_bytes_max: Annotated[int, Range(8 * MIB, 16 * GIB, unit="bytes")] = 64 * MIB
    """The memory for commands of this node's callers that have no outcome yet. Beyond it, calls
    raise `Overloaded` at once. A higher value hides an overload behind longer waits."""

    def __post_init__(self) -> None:
        check(self)
        object.__setattr__(self, "data_dir", Path(self.data_dir))
        _agree(self, "replication", _SHARED)
        _agree_on_backups(self)
        _agree_on_recovery(self)
        check_all_or_none(self, "tls_ca", "tls_cert", "tls_key")
        if self.tls_revoked and not self.tls_ca:
            raise ConfigError("tls_revoked needs tls_ca, tls_cert and tls_key")
        if self.peer_secret_file and self.tls_ca:
            raise ConfigError(
                "peer_secret_file is for peers without TLS", hint="certificates replace the secret"
            )
        _check_members(self)
        _check_own_address(self)
        _check_regions(self)
        self.replication.check_quorum(len(self.members))
        _check_times(self)
        _check_log_retention(self)

    @property
    def archive(self) -> PitrConfig | None:
        """`pitr` if point-in-time recovery is on, else None."""
        return self.pitr if self.enable_pitr and self.backup is not None else None

    @property
    def own_address(self) -> str:
        """The "host:port" where this node listens for peers."""
        return self.address or self.members[self.node_id]

    @property
    def regions_by_member(self) -> dict[int, str]:
        """The region of each of `members`, by id."""
        return {i: self.member_regions.get(i, self.regions[0]) for i in self.members}

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> HaConfig:
        """Make a config from a parsed TOML table, in which the keys of `members` are text."""
        return tables.build(cls, table)

    @classmethod
    def from_toml(cls, path: str | Path) -> HaConfig:
        """Make a config from a TOML file. Its relative paths are relative to the file's folder."""
        return cls.from_mapping(read_toml(path))


def read_toml(path: str | Path) -> dict[str, Any]:
    """Parse a TOML file. The relative paths of a node become relative to the file's folder."""
    return tables.load(path, HaConfig)


_SHARED = {
    "replication_factor": "replication_factor",
    "max_replication_lag_ms": "max_lag_ms",
    "auto_failover": "auto_failover",
    "heartbeat_interval_ms": "heartbeat_interval_ms",
}
"""The settings of both HaConfig and ReplicationConfig, by their name in each."""


def _agree(config: HaConfig, name: str, shared: Mapping[str, str]) -> None:
    """Copy the settings that the config `name` has too from one to the other."""
    inner, values = getattr(config, name), {}
    for outer_name, inner_name in shared.items():
        default = type(inner).__dataclass_fields__[inner_name].default
        here, there = getattr(config, outer_name), getattr(inner, inner_name)
        if default not in (here, there) and here != there:
            raise ConfigError(
                f"{outer_name} is {shown(here)}, but {name}.{inner_name} is {shown(there)}",
                hint="set it in one of the two places",
            )
        values[inner_name] = there if here == default else here
    object.__setattr__(config, name, replace(inner, **values))
    for outer_name, inner_name in shared.items():
        object.__setattr__(config, outer_name, values[inner_name])


def _agree_on_backups(config: HaConfig) -> None:
    if config.backup is not None:
        _agree(config, "backup", {"backup_interval_hours": "interval_hours"})
    elif (
        config.backup_interval_hours
        != HaConfig.__dataclass_fields__["backup_interval_hours"].default
    ):
        raise ConfigError(
            "backup_interval_hours is set, but this node takes no backups",
            hint="add the table [backup], in Python backup=BackupConfig(), or leave it out",
        )


def _agree_on_recovery(config: HaConfig) -> None:
    _agree(config, "pitr", {"pitr_retention_hours": "retention_hours"})
    if config.backup is None and config.pitr != PitrConfig():
        raise ConfigError(
            "pitr is set, but this node takes no backups, from which a recovery begins",
            hint="add the table [backup], in Python backup=BackupConfig(), or leave it out",
        )


def _check_members(config: HaConfig) -> None:
    for node_id, address in config.members.items():
        _check_peer_address(config, f"members[{node_id}]", address)
    if len(set(config.members.values())) != len(config.members):
        raise ConfigError(
            "members: two nodes have the same address", hint="each node needs a port of its own"
        )


def _check_own_address(config: HaConfig) -> None:
    node_id, address = config.node_id, config.address
    if address:
        _check_peer_address(config, "address", address)
    if node_id in config.members:
        if address not in ("", config.members[node_id]):
            raise ConfigError(
                f"address differs from members[{node_id}]",
                hint="leave it out: only a node that isn't in members needs it",
            )
    elif not address:
        raise ConfigError(
            f"node_id {node_id} is not in members",
            hint="to add a node to a running cluster, set its address",
        )
    elif address in config.members.values():
        raise ConfigError(
            "address belongs to another member", hint="each node needs an address of its own"
        )


def _check_peer_address(config: HaConfig, name: str, address: str) -> None:
    host, _ = parse_address(name, address)
    if not config.insecure and not config.tls_ca and not is_loopback(host):
        raise ConfigError(
            f"{name} = {address!r} is not on loopback, and peers speak plain TCP",
            hint="set tls_ca, tls_cert and tls_key (`raftha cert` makes the files), or"
            " insecure = true if the network between the nodes is private",
        )


def _check_regions(config: HaConfig) -> None:
    if len(set(config.regions)) < len(config.regions):
        raise ConfigError("regions: a name stands twice", hint="name each region once")
    for node_id, region in config.member_regions.items():
        if node_id not in config.members:
            raise ConfigError(
                f"member_regions: node {node_id} is not in members",
                hint="a node that is added later gets its region when it is added",
            )
        if region not in config.regions:
            raise ConfigError(
                f"member_regions[{node_id}]: {shown(region)} is not in regions",
                hint=f"known are {', '.join(config.regions)}",
            )


def _check_times(config: HaConfig) -> None:
    heartbeat_ms, election_ms = config.heartbeat_interval_ms, config.election_timeout_ms
    if election_ms < 4 * heartbeat_ms:
        raise ConfigError(
            f"election_timeout_ms must be at least 4 heartbeats ({4 * heartbeat_ms}), got"
            f" {election_ms}",
            hint="raise it, or lower heartbeat_interval_ms",
        )
    if config.lease_ms and not 2 * heartbeat_ms <= config.lease_ms <= election_ms:
        raise ConfigError(
            f"lease_ms must be 0, or from 2 heartbeats to an election timeout"
            f" ({2 * heartbeat_ms} to {election_ms}), got {config.lease_ms}",
            hint="0 turns leases off",
        )


def _check_log_retention(config: HaConfig) -> None:
    if config.log_retention_bytes < config.max_wal_size:
        raise ConfigError(
            f"log_retention_bytes must be at least max_wal_size ({config.max_wal_size}), got"
            f" {config.log_retention_bytes}",
            hint="raise it, or lower max_wal_size",
        )
