"""The settings of a node, checked once, when they are made.

Every problem is a `ConfigError` that names the field and what it should be.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from types import MappingProxyType
from typing import Any

from raftha.errors import ConfigError
from raftha.events import HaEvent
from raftha.settings import check_all_or_none, check_range, check_types, shown
from raftha.types import ReplicationMode

KEY_BYTES_MAX = 511  # LMDB's limit for a key, compiled into its wheels.
MEMBERS_MAX = 9
DAY_MS = 86_400_000
REGIONS_MAX = 16
REGION_BYTES_MAX = 64
KIB, MIB = 1024, 1024 * 1024
PATH_SETTINGS = (
    "data_dir", "tls_ca", "tls_cert", "tls_key",
    "auth_token_file", "listen_tls_cert", "listen_tls_key",
)  # fmt: skip
"""Of a node and of a server: what in a TOML file is relative to the file's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationConfig:
    """How writes are acknowledged, and who is to notice what."""

    replication_factor: int = 3
    """How many voters there are to be, from 1 to 9; with fewer the cluster counts as degraded."""

    mode: ReplicationMode = ReplicationMode.ASYNC_WITH_ACK
    """When a write's caller is released, unless the write says otherwise. The commit rule is the
    same in all modes: on disk on a majority."""

    max_lag_ms: int = 5000
    """A replica that is further behind counts as lagging, and is warned of. At least 1."""

    write_quorum: int = 0
    """With `async_with_ack`: how many voters must have a write on disk before its caller is
    released; 0 for a majority. Fewer than a majority can't be asked for."""

    ack_timeout_ms: int = 1000
    """How long a committed write waits for acknowledgements beyond the majority's. At least 1."""

    auto_failover: bool = True
    """Whether followers campaign by themselves. Without it an operator promotes: `failover_to`; but
    for the first leader of a new cluster."""

    heartbeat_interval_ms: int = 50
    """How often the leader says it is there. From 10 to 1,000."""

    def __post_init__(self) -> None:
        mode = self.mode
        if isinstance(mode, str) and mode in tuple(ReplicationMode):
            object.__setattr__(self, "mode", ReplicationMode(mode))
        else:
            known = ", ".join(ReplicationMode)
            raise ConfigError(f"mode must be one of {known}, got {shown(mode)}")
        check_types(
            self,
            {
                "replication_factor": int, "max_lag_ms": int, "write_quorum": int,
                "ack_timeout_ms": int, "auto_failover": bool, "heartbeat_interval_ms": int,
            },
        )  # fmt: skip
        check_range(self, "replication_factor", 1, MEMBERS_MAX)
        check_range(self, "max_lag_ms", 1, DAY_MS)
        check_range(self, "write_quorum", 0, MEMBERS_MAX)
        check_range(self, "ack_timeout_ms", 1, 600_000)
        check_range(self, "heartbeat_interval_ms", 10, 1_000)

    def check_quorum(self, voters: int) -> None:
        """ConfigError if `write_quorum` is less than a majority of so many voters, or more."""
        if self.write_quorum and not voters // 2 < self.write_quorum <= voters:
            raise ConfigError(
                f"write_quorum must be 0, or from {voters // 2 + 1} to {voters} with {voters}"
                f" voters, got {self.write_quorum}",
                hint="a write is only safe on a majority",
            )


_SHARED = {
    "replication_factor": "replication_factor",
    "max_replication_lag_ms": "max_lag_ms",
    "auto_failover": "auto_failover",
    "heartbeat_interval_ms": "heartbeat_interval_ms",
}
"""What HaConfig and ReplicationConfig both have, under either's name."""

_TYPES: dict[str, type | tuple[type, ...]] = {
    "node_id": int, "data_dir": (str, Path), "members": Mapping, "address": str,
    "cluster_name": str, "client_address": str, "insecure": bool, "tls_ca": (str, Path),
    "tls_cert": (str, Path), "tls_key": (str, Path), "heartbeat_interval_ms": int,
    "election_timeout_ms": int, "lease_ms": int, "clock_drift_max": (int, float),
    "request_timeout_s": (int, float), "value_bytes_max": int,
    "wal_segment_bytes": int, "max_wal_size": int, "checkpoint_interval_sec": (int, float),
    "disk_reserve_bytes": int,
    "log_retention_bytes": int, "snapshot_bytes_per_s": int, "submit_queue_bytes_max": int,
    "replication_factor": int, "backup_interval_hours": int, "enable_pitr": bool,
    "pitr_retention_hours": int, "health_check_interval_sec": (int, float),
    "max_replication_lag_ms": int, "auto_failover": bool, "regions": (tuple, list),
    "member_regions": Mapping, "replication": ReplicationConfig,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class HaConfig:
    """How one node runs. All members of a cluster need the same `members` and `cluster_name`."""

    node_id: int
    """This node's id, a key of `members`, from 1 to 2**32 - 1; never reuse one for another node."""

    data_dir: str | Path
    """The folder for log and state; made if missing, locked while in use."""

    members: Mapping[int, str]
    """The nodes that the cluster begins with: id -> "host:port" of the peer listener. Never changed
    afterwards: who comes and goes later is known to the cluster itself."""

    address: str = ""
    """"host:port" of this node's own peer listener, if it isn't in `members` but to be added."""

    cluster_name: str = "raftha"
    """With `members`, gives the cluster its id; nodes of other clusters are turned away."""

    client_address: str = ""
    """"host:port" of the host process's own listener for clients; only shown in statuses."""

    replication_factor: int = 3
    """How many voters there are to be; with fewer the cluster counts as degraded."""

    max_replication_lag_ms: int = 5000
    """A replica that is further behind counts as lagging, and is warned of; and a leader whose own
    commits stall for longer than this, while its followers are well, hands over."""

    auto_failover: bool = True
    """Whether followers campaign by themselves. Without it an operator promotes: `failover_to`; but
    for the first leader of a new cluster."""

    health_check_interval_sec: float = 30
    """How often peers and the own disk are checked. From 0.1 to 3600."""

    regions: tuple[str, ...] = ("primary",)
    """The regions there are, those first that leadership is to be in."""

    member_regions: Mapping[int, str] = field(default_factory=dict)
    """Which region each of `members` is in; those not named are in the first of `regions`."""

    replication: ReplicationConfig = field(default_factory=ReplicationConfig)
    """Modes and quorums. What is here and there too is to be set in one of the two places."""

    on_event: Callable[[HaEvent], None] | None = None
    """Called with each event, in order, in a thread of its own; not a setting of TOML files."""

    backup_interval_hours: int = 6
    """Backups are not available in this version; accepted, and without effect."""

    enable_pitr: bool = True
    """Point-in-time recovery is not available in this version; accepted, and without effect."""

    pitr_retention_hours: int = 168
    """Point-in-time recovery is not available in this version; accepted, and without effect."""

    insecure: bool = False
    """Allow peers off loopback, unencrypted and unauthenticated: only in networks you trust."""

    tls_ca: str | Path = ""
    """The certificate of the cluster's own CA. With `tls_cert` and `tls_key`, all three or none,
    peers speak mutual TLS, and members may be anywhere. `raftha cert` makes what is needed."""

    tls_cert: str | Path = ""
    """This node's certificate, signed by `tls_ca`'s key; it says which node of which cluster."""

    tls_key: str | Path = ""
    """The private key of `tls_cert`, unencrypted, in a file that not every user may read."""

    heartbeat_interval_ms: int = 50
    """How often the leader says it is there. From 10 to 1,000."""

    election_timeout_ms: int = 500
    """A follower that hears nothing campaigns after 1 to 2 of these. At least 4 heartbeats. It
    counts for silent leaders; one whose connection breaks is replaced without waiting for it."""

    lease_ms: int = 0
    """How long followers promise a leader to elect no other, so that it can answer reads by itself;
    0 for never. From 2 heartbeats to `election_timeout_ms`. Set it only where `clock_drift_max`
    holds. A leader that dies is replaced that much later, but for one that is stopped in order."""

    clock_drift_max: float = 0.2
    """With `lease_ms`: how much slower one member's clock may run than another's, as a fraction,
    from 0 to 0.9. The default allows for chronyd's fastest slewing, which is 0.083 either way."""

    request_timeout_s: float = 10.0
    """The deadline of a call that doesn't give its own, over 0 and up to 600."""

    value_bytes_max: int = MIB
    """The largest value, up to 4 MiB."""

    wal_segment_bytes: int = 64 * MIB
    """Size of a log file, from 16 MiB to 1 GiB, a multiple of 4 KiB. Allocated in advance."""

    max_wal_size: int = 64 * MIB
    """A checkpoint begins once this many bytes of log came after the last one, or take as much in
    memory. At least 1 MiB. With twice that, and the last one still under way, a node takes in no
    more log until it is done."""

    log_retention_bytes: int = 1024 * MIB
    """How much log is kept for members that are down or slow; one that needs more is sent an image
    of the state. At least `max_wal_size`; what a checkpoint needs is kept in any case."""

    disk_reserve_bytes: int = 64 * MIB
    """Space kept back in the data directory, for the checkpoint that a full disk must still take;
    0 for none. Writers are refused while the disk has no room for it."""

    snapshot_bytes_per_s: int = 0
    """How fast images of the state are sent, all receivers together; 0 for as fast as can be, or at
    least 64 KiB."""

    checkpoint_interval_sec: float = 60.0
    """A checkpoint begins at the latest this long after the last one, if anything was applied."""

    submit_queue_bytes_max: int = 64 * MIB
    """Commands on this node that have no outcome yet; beyond it callers get `Overloaded` at once.
    At least 8 MiB."""

    def __post_init__(self) -> None:
        check_types(self, _TYPES)
        check_range(self, "replication_factor", 1, MEMBERS_MAX)
        check_range(self, "max_replication_lag_ms", 1, DAY_MS)
        check_range(self, "heartbeat_interval_ms", 10, 1_000)
        self._agree_on_replication()
        object.__setattr__(self, "data_dir", Path(self.data_dir))
        object.__setattr__(self, "members", MappingProxyType(dict(sorted(self.members.items()))))
        check_all_or_none(self, "tls_ca", "tls_cert", "tls_key")
        _check_members(self)
        _check_regions(self)
        self.replication.check_quorum(len(self.members))
        if not self.cluster_name or len(self.cluster_name.encode()) > 64:
            raise ConfigError("cluster_name must be 1 to 64 bytes of UTF-8")
        if self.client_address:
            parse_address("client_address", self.client_address)
        check_range(self, "health_check_interval_sec", 0.1, 3600)
        check_range(self, "backup_interval_hours", 1, 8760)
        check_range(self, "pitr_retention_hours", 1, 87_600)
        if self.on_event is not None and not callable(self.on_event):
            raise ConfigError(f"on_event must be callable, got {shown(self.on_event)}")
        check_range(self, "election_timeout_ms", 4 * self.heartbeat_interval_ms, 600_000)
        if self.lease_ms:
            low, high = 2 * self.heartbeat_interval_ms, self.election_timeout_ms
            if not low <= self.lease_ms <= high:
                raise ConfigError(
                    f"lease_ms must be 0, or from 2 heartbeats to an election timeout ({low} to"
                    f" {high}), got {shown(self.lease_ms)}"
                )
        check_range(self, "clock_drift_max", 0, 0.9)
        if not 0 < self.request_timeout_s <= 600:
            raise ConfigError("request_timeout_s must be over 0 and at most 600")
        check_range(self, "value_bytes_max", 1, 4 * MIB)
        check_range(self, "wal_segment_bytes", 16 * MIB, 1024 * MIB)
        if self.wal_segment_bytes % 4096:
            raise ConfigError("wal_segment_bytes must be a multiple of 4096")
        check_range(self, "max_wal_size", MIB, 1 << 40)
        check_range(self, "log_retention_bytes", self.max_wal_size, 1 << 50)
        check_range(self, "disk_reserve_bytes", 0, 1 << 40)
        if self.snapshot_bytes_per_s:
            check_range(self, "snapshot_bytes_per_s", 64 * KIB, 1 << 40)
        if not 0.1 <= self.checkpoint_interval_sec <= 86_400:
            raise ConfigError("checkpoint_interval_sec must be from 0.1 to 86400")
        check_range(self, "submit_queue_bytes_max", 8 * MIB, 1 << 34)

    def _agree_on_replication(self) -> None:
        """Have the settings that are in both places the same in both."""
        inner, values = self.replication, {}
        for own, its in _SHARED.items():
            default = ReplicationConfig.__dataclass_fields__[its].default
            here, there = getattr(self, own), getattr(inner, its)
            if default not in (here, there) and here != there:
                raise ConfigError(
                    f"{own} is {shown(here)}, but replication.{its} is {shown(there)}",
                    hint="set it in one of the two places",
                )
            values[its] = there if here == default else here
        inner = replace(inner, **values)
        object.__setattr__(self, "replication", inner)
        for own, its in _SHARED.items():
            object.__setattr__(self, own, getattr(inner, its))

    @property
    def own_address(self) -> str:
        """Where this node listens for peers."""
        return self.address or self.members[self.node_id]

    @property
    def regions_by_member(self) -> dict[int, str]:
        """Which region each of `members` is in."""
        return {i: self.member_regions.get(i, self.regions[0]) for i in self.members}

    @property
    def cluster_id(self) -> str:
        """What tells this cluster from others: 32 hex digits, from its name and its members."""
        text = f"{self.cluster_name}\n" + "\n".join(f"{i} {a}" for i, a in self.members.items())
        text += "".join(f"\n{i} {r}" for i, r in self.member_regions.items())
        return sha256(text.encode()).hexdigest()[:32]

    @classmethod
    def from_mapping(cls, table: Mapping[str, Any]) -> HaConfig:
        """Make a config from a parsed TOML table, whose `members` have string keys."""
        known = {field.name for field in dataclasses.fields(cls)} - {"on_event"}
        unknown = sorted(set(table) - known)
        if unknown:
            raise ConfigError(
                f"unknown setting {', '.join(unknown)}",
                hint=f"known are {', '.join(sorted(known))}",
            )
        missing = [name for name in ("node_id", "data_dir", "members") if name not in table]
        if missing:
            raise ConfigError(f"missing setting {', '.join(missing)}")
        settings = dict(table)
        for name in ("members", "member_regions"):
            if name in table:
                settings[name] = _by_id(name, table[name])
        if isinstance(table.get("replication"), Mapping):
            settings["replication"] = _replication(table["replication"])
        return cls(**settings)

    @classmethod
    def from_toml(cls, path: str | Path) -> HaConfig:
        """Read a TOML file; relative paths in it are relative to the file's folder."""
        return cls.from_mapping(read_toml(path))


def read_toml(path: str | Path) -> dict[str, Any]:
    """Parse a TOML file and make its paths, if relative, relative to the file's folder."""
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"can't read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        # Not only TOMLDecodeError: tomllib lets through what Python says of an endless number.
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for name in PATH_SETTINGS:
        # Empty means "none", but for the data directory, where it has always meant the folder.
        if isinstance(table.get(name), str) and (table[name] or name == "data_dir"):
            table[name] = str(path.parent / table[name])
    return table


def _by_id(name: str, table: object) -> dict[int, Any]:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{name} must be a table by node id")
    try:
        return {int(node_id): value for node_id, value in table.items()}
    except ValueError as error:
        raise ConfigError(f"{name}: {error}", hint="ids are whole numbers") from error


def _replication(table: Mapping[str, Any]) -> ReplicationConfig:
    known = {field.name for field in dataclasses.fields(ReplicationConfig)}
    unknown = sorted(set(table) - known)
    if unknown:
        raise ConfigError(
            f"unknown setting replication.{', replication.'.join(unknown)}",
            hint=f"known are {', '.join(sorted(known))}",
        )
    return ReplicationConfig(**table)


def parse_address(name: str, address: str) -> tuple[str, int]:
    """Split "host:port" (or "[v6]:port"); ConfigError naming `name` if it isn't one."""
    host, colon, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if (
        not colon
        or not host
        or len(host) > 255
        or not port.isascii()
        or not port.isdigit()
        or int(port) > 65535
    ):
        raise ConfigError(f'{name} must be "host:port", got {address!r}')
    return host, int(port)


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_members(config: HaConfig) -> None:
    if not 1 <= len(config.members) <= MEMBERS_MAX:
        raise ConfigError(f"members must name 1 to {MEMBERS_MAX} nodes, got {len(config.members)}")
    for node_id, address in config.members.items():
        if not isinstance(node_id, int) or isinstance(node_id, bool) or not 0 < node_id < 1 << 32:
            raise ConfigError(f"members: {shown(node_id)} is not an id from 1 to 2**32 - 1")
        if not isinstance(address, str):
            raise ConfigError(f"members[{node_id}] must be text, got {shown(address)}")
        _check_peer_address(config, f"members[{node_id}]", address)
    if not isinstance(config.node_id, int) or not 0 < config.node_id < 1 << 32:
        raise ConfigError(f"node_id must be from 1 to 2**32 - 1, got {shown(config.node_id)}")
    if config.address:
        _check_peer_address(config, "address", config.address)
    if len(set(config.members.values())) != len(config.members):
        raise ConfigError("members: two nodes have the same address")
    if config.node_id in config.members:
        if config.address not in ("", config.members[config.node_id]):
            raise ConfigError(f"address differs from members[{config.node_id}]")
    elif not config.address:
        raise ConfigError(
            f"node_id {config.node_id} is not in members",
            hint="a node that is to be added to a running cluster needs its address",
        )
    elif config.address in config.members.values():
        raise ConfigError("address is another member's")


def _check_regions(config: HaConfig) -> None:
    regions = tuple(config.regions)
    object.__setattr__(config, "regions", regions)
    if not 1 <= len(regions) <= REGIONS_MAX or len(set(regions)) < len(regions):
        raise ConfigError(f"regions must name 1 to {REGIONS_MAX} different regions")
    for region in regions:
        if not isinstance(region, str) or not 1 <= len(region.encode()) <= REGION_BYTES_MAX:
            raise ConfigError(
                f"regions: a name has 1 to {REGION_BYTES_MAX} bytes, got {shown(region)}"
            )
    named = dict(sorted(config.member_regions.items()))
    for node_id, region in named.items():
        if node_id not in config.members:
            raise ConfigError(f"member_regions: node {shown(node_id)} is not in members")
        if region not in regions:
            raise ConfigError(f"member_regions[{node_id}]: {shown(region)} is not in regions")
    object.__setattr__(config, "member_regions", MappingProxyType(named))


def _check_peer_address(config: HaConfig, name: str, address: str) -> None:
    host, port = parse_address(name, address)
    if port == 0:
        raise ConfigError(f"{name} needs a port, peers must know it")
    if not config.insecure and not config.tls_ca and not is_loopback(host):
        raise ConfigError(
            f"{name} = {address!r} is not on loopback, and peers speak plain TCP",
            hint="set tls_ca, tls_cert and tls_key (`raftha cert` makes the files), or"
            " insecure = true if the network between the nodes is yours alone",
        )
