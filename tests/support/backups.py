"""A node that takes backups, without threads: state, spool and a repository in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import count
from random import Random

from raftha.entry import EntryKind
from raftha.membership import Member, Membership
from raftha.storage.backup.crypto import OperatorKey
from raftha.storage.backup.destination import Destination
from raftha.storage.backup.manifest import LETTERS, StoredManifest
from raftha.storage.backup.memory import MemoryDestination
from raftha.storage.backup.names import label
from raftha.storage.backup.repository import Repository, open_repository
from raftha.storage.backup.source import StoreSource
from raftha.storage.backup.spool import Spool
from raftha.storage.backup.take import TakeHooks, TakeOrder, TakeResult, take
from raftha.storage.backup.uploads import Waits
from raftha.storage.state.commands import pack_delete, pack_put
from raftha.storage.state.state import State
from raftha.storage.state.store import Store
from tests.sim.disk import SimulatedDisk
from tests.sim.store import DictStore
from tests.support.entries import Log, group, opening

LINEAGE, CLUSTER = "ab" * 16, "cd" * 16
MIB = 1 << 20


class FakeTime:
    """Passes only when something sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.is_wanted = True

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    @property
    def waits(self) -> Waits:
        return Waits(lambda: self.now, self.sleep, lambda: self.is_wanted)


def repository_of(*destinations: Destination, operator: OperatorKey | None = None) -> Repository:
    """A repository in these destinations; random by the same seed each time."""
    return open_repository(
        destinations, operator=operator, may_create=True, now_us=5, random=Random(7).randbytes
    )


class BackedUpNode:
    """A state that is written through a log, its checkpoints, and backups of it."""

    def __init__(
        self, store: Store | None = None, *, spool_bytes: int = MIB, members: Sequence[int] = (1, 2)
    ) -> None:
        self.store = DictStore() if store is None else store
        self.disk = SimulatedDisk(Random(1))
        self.state = State(self.store)
        self.spool = Spool(self.disk, "/spool", spool_bytes, self.state.applied)
        self.log = Log()
        self.time = FakeTime()
        self.model: dict[bytes, bytes] = {}
        addresses = {i: Member(f"127.0.0.1:{7000 + i}", incarnation=i) for i in members}
        membership = Membership(addresses, frozenset({9}), CLUSTER, LINEAGE)
        self.state.apply(self.log.add(EntryKind.MEMBERSHIP, membership.encode()))
        opened = self.state.apply(self.log.batch(opening()))
        self._session = opened[0].outcome.session
        self._numbers = count(1)

    def write(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Put, or delete where the value is None, in one entry."""
        commands = [
            pack_delete(key) if value is None else pack_put(key, value)
            for key, value in changes.items()
        ]
        entry = self.log.batch(group(self._session, next(self._numbers), commands))
        self.state.apply(entry)
        for key, value in changes.items():
            if value is None:
                self.model.pop(key, None)
            else:
                self.model[key] = value

    def checkpoint(self) -> None:
        """Make a checkpoint, as the storage threads do."""
        frozen = self.state.freeze()
        self.spool.add(frozen.position, frozen.meta, frozen.items)
        self.store.write(frozen.items, frozen.meta)
        self.spool.commit(frozen.position)
        self.state.checkpoint_done()

    @property
    def source(self) -> StoreSource:
        return StoreSource(self.store, self.spool)

    def order(
        self,
        mode: str = "full",
        parent: TakeResult | None = None,
        destinations: Sequence[str] = ("memory",),
    ) -> TakeOrder:
        """The order of a backup that begins with another entry, and a checkpoint behind it."""
        begin = self.log.noop()
        self.state.apply(begin)
        self.checkpoint()
        stored = None
        if parent is not None:
            stored = StoredManifest(parent.manifest, parent.manifest_sha256)
        return TakeOrder(
            id=begin.index,
            label=label(begin.time_us, LETTERS[mode], begin.index),
            mode=mode,
            lineage=LINEAGE,
            node=1,
            started_us=begin.time_us,
            destinations=tuple(destinations),
            parent=stored,
            level=3,
        )

    def hooks(self, **changes: Callable[..., object]) -> TakeHooks:
        """Hooks of virtual time and no threads."""
        hooks = TakeHooks(waits=self.time.waits, now_us=lambda: 77, random=Random(3).randbytes)
        return replace(hooks, **changes)  # type: ignore[arg-type]

    def take(
        self, repository: Repository, mode: str = "full", parent: TakeResult | None = None
    ) -> TakeResult:
        """Take a backup in all destinations of the repository."""
        order = self.order(mode, parent, [*repository.destinations, *repository.failed])
        return take(order, self.source, repository, self.hooks())


def memory(name: str = "memory") -> MemoryDestination:
    """An empty destination."""
    return MemoryDestination(name)
