"""A node with its threads, files and sockets: what `HaManager` starts and stops.

Theory of operation. One thread runs the node on its own event loop (uvloop), so a host process that
blocks its own loop loses no elections. Other threads read and write the disk (`storage_threads.py`,
`snapshot_thread.py`; `node_storage.py` opens and closes both with their files). They get work as
jobs, and each result comes back as a call on the node's loop.

Callers submit operations through a queue, and get results from the node's thread (`callers.py`).

The files are opened on the caller's thread, so errors in configuration or on disk are raised there.
After that, errors end the node and never the process: an unexpected exception on the node's loop, a
failed write or a failed checkpoint stops the node (`_fail`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import random
import secrets
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import uvloop

from raftha.clock import SystemClock
from raftha.config import HaConfig
from raftha.core import LogRead, Write
from raftha.entry import Entry, LogPosition
from raftha.errors import (
    ConfigError,
    Corrupt,
    Disconnected,
    Forked,
    RafthaError,
    RequestTimeout,
    Stopped,
    StorageFailed,
    Unavailable,
    UpgradeRequired,
)
from raftha.events import HaEvent, RoleChanged, SnapshotFailed
from raftha.membership import Membership
from raftha.net import certificate_renewal
from raftha.net.certificate_renewal import Renewal
from raftha.net.peer_secret import load_secret
from raftha.net.transport import Transport
from raftha.net.wire import Hello
from raftha.node.bootstrap import HEARTBEAT_TICKS, make_core
from raftha.node.checkpoints import LogCut
from raftha.node.messages import PeerMessage
from raftha.node.node import Node
from raftha.node.operations import Operation, ReadOperation
from raftha.node.statistics import Statistics
from raftha.runtime import forks, introductions
from raftha.runtime.callers import Results, SubmitQueue, ThreadWaiter, enter_node_thread
from raftha.runtime.event_bus import EventBus
from raftha.runtime.founding import Waiting
from raftha.runtime.logs import log_event
from raftha.runtime.moves import Moves
from raftha.runtime.node_storage import NodeStorage
from raftha.storage.directory.datadir import DataDirectory
from raftha.storage.directory.healing import OpenNode
from raftha.storage.log.disk import RealDisk
from raftha.storage.state.machine import StateMachine
from raftha.storage.state.state import Frozen
from raftha.types import HaStatus

RESIGN_TIMEOUT_S = 1.0
OBSERVE_TIMEOUT_S = 2.0

log = logging.getLogger(__name__)


class Runtime:
    """One running node. Started once, stopped once."""

    def __init__(self, config: HaConfig, machine: StateMachine | None, events: EventBus) -> None:
        """Open the data directory; ConfigError or StorageError if that fails."""
        self.config = config
        self._events = events
        self._renewal = Renewal(config)
        self._tls = self._renewal.load()
        secret = load_secret(config.peer_secret_file)
        self._machine = machine
        self._reopening: asyncio.Task[None] | None = None
        self._waiting: Waiting | None = None
        self._carried: Sequence[Operation] = ()
        self._submitted = SubmitQueue(config.submit_queue_bytes_max)
        self._results = Results()
        self.statistics = Statistics()
        self._is_turn_due = False
        self._loop = uvloop.new_event_loop()
        self._stopping: asyncio.Event | None = None
        self._resigned: asyncio.Event | None = None
        self._random = random.Random(secrets.randbits(64))
        self._clock = SystemClock()
        self._process = os.getpid()
        self._notices = introductions.Notices(config.node_id, self.emit)
        self._open_all()
        hello = introductions.make_hello(config, self._data, self.node.state)
        self.on_unsupported, self.on_cloned = self._notices.unsupported, self._notices.cloned
        self._transport = Transport(
            hello, config.own_address, self, self._random.random, self._tls, secret
        )
        self._transport.introduce(**introductions.said_of(self._data, self._waiting))
        name = f"raftha-{config.node_id}"
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _open_all(self) -> None:
        """Lock the data directory and open its files; on an error, leave nothing open."""
        config = self.config
        with contextlib.ExitStack() as opened:
            opened.callback(self._loop.close)
            epoll = cast(Any, self._loop)._get_backend_id()  # Not in uvloop's stubs.
            forks.add_node(self, Path(config.data_dir), epoll)
            opened.callback(forks.remove_node, self)
            if forks.is_inherited(Path(config.data_dir)):
                raise Forked
            path = Path(config.data_dir)
            self._data = DataDirectory(path, config.cluster_name, config.node_id)
            opened.callback(self._data.close)
            self.node = self._open()
            forks.renew_in_child(self, Runtime._end_lease)
            opened.pop_all()

    def _open(self, lost: Corrupt | None = None) -> Node:
        """Open log and state, with the received snapshot if one is ready, and make the node.

        With `lost`, set the log aside: the leader knows of entries that it lacks.
        """
        storage = NodeStorage(
            self.config,
            self._data,
            RealDisk(),
            self._call_node,
            partial(self._call, self._fail),
            self.emit,
            self.statistics,
        )
        open_node = storage.open(
            self._machine,
            on_snapshot_error=self._on_snapshot_error,
            install=partial(self._begin_again, "this node installs a snapshot of the state"),
            restore=partial(self._begin_again, "the cluster goes back to an earlier moment", None),
            lost=lost,
        )
        with contextlib.ExitStack() as opened:
            opened.callback(storage.abandon)
            self.snapshots, self.backups, self.recovery = storage.work
            node = self._make_node(open_node)
            self._threads = storage.make_threads(node)
            self._storage = storage  # Until now `_close_files` closes that of the life before.
            opened.pop_all()
            return node

    def _make_node(self, open_node: OpenNode) -> Node:
        config, data, (wal, state, entries) = self.config, self._data, open_node
        self._data.record_promise(config.lease_ms)
        core = make_core(
            config,
            wal.hard_state,
            wal.first_index,
            state,
            entries,
            self._random.randrange,
            healing_generation=data.healing_generation,
            promised_ms=data.promised_ms,
            clock_ns=self._clock.boottime_ns,
            time_us=self._clock.time_us,
        )
        if core.membership.cluster_id and not data.cluster_id:
            data.join(core.membership.cluster_id, heals=False)  # It was cut off while it founded.
        node = Node(config, core, state, self, self._clock, self._random.randrange)
        node.report.cloned = self._notices.cloned_members
        self._waiting, self._moves = None, Moves(config, core)
        if not data.cluster_id:
            self._waiting = Waiting(config, data, self._clock.monotonic, self._become)
            node.report.waits_for = self._waiting.message
        else:
            self._moves.report()
        return node

    def _end_lease(self) -> None:
        """In a forked process: its copy of the node's state is stale from now on."""
        self.node.core.leases.withdraw()

    # ---------------------------------------------------------------- life

    def start(self) -> None:
        """Start the threads; return once peers can connect. ConfigError if it can't listen."""
        started: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._started = started
        self._threads.start()
        self._thread.start()
        error = started.get()
        if error is not None:
            self._thread.join()
            raise error

    def stop(self) -> None:
        """Hand over leadership if that is quick, fail the open calls, close everything."""
        self._call(self._begin_stop)
        self._thread.join()

    @property
    def is_inherited(self) -> bool:
        """True if this process was forked from the one that the node runs in."""
        return os.getpid() != self._process

    @property
    def is_alive(self) -> bool:
        """True if the node's thread runs, even if the node has failed."""
        return self._thread.is_alive()

    def _begin_stop(self) -> None:
        if self._stopping is not None:
            self._stopping.set()

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        """Call on the node's loop, unless the loop is closed."""
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def _call_node(self, function: Callable[..., None], *args: Any) -> None:
        """Call on the node's loop, unless the node has ended or failed by then."""
        self._call(self._unless_failed, function, *args)

    def _unless_failed(self, function: Callable[..., None], *args: Any) -> None:
        if not self.node.failure:
            function(*args)

    def _run(self) -> None:
        enter_node_thread()
        asyncio.set_event_loop(self._loop)
        self._loop.set_exception_handler(self._on_loop_exception)
        try:
            self._loop.run_until_complete(self._main())
        finally:
            self._loop.close()

    async def _main(self) -> None:
        self._stopping, self._resigned = asyncio.Event(), asyncio.Event()
        try:
            await self._transport.start()
        except (OSError, UnicodeError) as error:
            await self._close()
            reason = getattr(error, "strerror", None) or error
            self._started.put(ConfigError(f"can't listen on {self.config.own_address}: {reason}"))
            return
        self.set_members(self.node.membership)
        self._started.put(None)
        self._tick(self._loop.time())
        self._threads.preallocate()
        renewing = self._loop.create_task(self._renew_tls())
        await self._stopping.wait()
        renewing.cancel()
        if self._reopening is not None:
            await self._reopening
        await self._resign()
        await self._close()

    async def _renew_tls(self) -> None:
        while self._tls is not None:
            self.statistics.certificate_expires_at = self._renewal.expires_at
            expiry = self._renewal.expiry(self._clock.time_us() / 1e6)
            if expiry is not None:
                self.emit(expiry)
            await asyncio.sleep(certificate_renewal.CHECK_INTERVAL_S)
            tls = await self._loop.run_in_executor(None, self._renewal.renewed)
            if tls is not None:
                self._transport.renew(tls)

    async def _resign(self) -> None:
        """A leader that is stopped hands over first: its followers need no election timeout."""
        core = self.node.core
        if self.node.failure or not core.is_leader:
            return
        successors = [
            (progress.match, peer)
            for peer, progress in core.progress.items()
            if peer in core.membership.voters
            and progress.is_active
            and not progress.is_healing
            and self._transport.is_connected(peer)
        ]
        if not successors:
            return
        assert self._resigned is not None
        self._resigned.clear()
        core.transfer(max(successors)[1])
        self.wake()
        try:
            await asyncio.wait_for(self._resigned.wait(), RESIGN_TIMEOUT_S)
        except TimeoutError:
            log.info("node=%d leadership was not handed over before stopping", core.id)

    async def _close(self) -> None:
        await self._transport.stop()
        message = "the node is stopped"
        with self._submitted.lock:
            if not self.node.failure:
                self.node.fail("", Stopped(message), Disconnected(message))
        self._drain()
        if await self._close_files():
            self._data.close()
            forks.remove_node(self)

    async def _close_files(self) -> bool:
        """Wait until all threads have finished, then close log and state.

        False if the disk hangs: then everything stays open.
        """
        if not await self._loop.run_in_executor(None, self._storage.end_threads):
            return False
        self._storage.close()
        return True

    @property
    def has_ended(self) -> bool:
        """True if this node has stopped or failed for good; False while it is being reopened."""
        return not self.is_alive or (bool(self.node.failure) and not self._is_reopening)

    @property
    def _is_reopening(self) -> bool:
        return self._reopening is not None and not self._reopening.done()

    def heal_log(self, lost_index: int) -> None:
        found = f"entries up to {lost_index}, which this node acknowledged, are missing"
        lost = Corrupt(self._data.path / "wal", 0, found)
        self._call_node(self._begin_again, "this node heals from the loss of its log", lost)

    def heal_state(self, detail: str) -> None:
        self._data.record_damage(detail)
        self._call_node(self._begin_again, "this node replaces its state")

    def _begin_again(self, message: str, lost: Corrupt | None = None, change: Any = None) -> None:
        """End the node, as a kill would, and reopen it after `change`; new calls and reads wait."""
        with self._submitted.lock:
            self._reopening = self._loop.create_task(self._reopen(lost, change))
            self._carried = self.node.take_unharmed()
            self.node.fail("", Unavailable(message), Disconnected(message))

    def _become(self, change: Callable[[], None]) -> None:
        """Begin again as a member, with this change to the disk. No call fails for it."""
        with self._submitted.lock:
            self._reopening = self._loop.create_task(self._reopen(None, change))
            self._carried = self.node.replace()

    async def _reopen(self, lost: Corrupt | None, change: Callable[[], None] | None = None) -> None:
        await self._transport.pause()
        try:
            if not await self._close_files():
                raise StorageFailed("the disk hangs")
            await self._loop.run_in_executor(None, change or (lambda: None))
            node = await self._loop.run_in_executor(None, self._open, lost)
        except Exception as error:  # noqa: BLE001 - a supervisor: whatever it is ends the node
            self._reopening = None
            self.node.failure = ""
            self._fail(error)  # With what was carried.
            self._drain()
            return
        self._threads.start()
        self._threads.preallocate()
        self.node, self._reopening = node, None
        self._transport.introduce(**introductions.said_of(self._data, self._waiting))
        self.set_members(node.membership)
        carried, self._carried = self._carried, ()
        node.submit(carried)
        self._drain()
        self.wake()

    def _on_snapshot_error(self, error: BaseException, is_harmless: bool) -> None:
        """From any thread: a snapshot could not be made, read, written or checked."""
        if is_harmless:
            event = SnapshotFailed(reporter=self.config.node_id, reason=str(error))
            self._call(self.emit, event)
        else:
            self._call(self._fail, error)

    def _tick(self, due: float) -> None:
        assert self._stopping is not None
        if self._stopping.is_set():
            return
        interval_s = self.config.heartbeat_interval_ms / 1000 / HEARTBEAT_TICKS
        if not self.node.failure:
            self._moves.on_tick()
            self.node.on_tick()
            if self._waiting is not None:
                self._waiting.on_tick()
        # A process that was paused doesn't make up for missed ticks: the other nodes kept time.
        due = max(due, self._loop.time() - interval_s) + interval_s
        self._loop.call_at(due, self._tick, due)

    def _fail(self, error: BaseException) -> None:
        """The node ends; its process goes on (`Node`, N5)."""
        if self.node.failure:
            return
        reason = f"{type(error).__name__}: {error}"
        applying = self.node.state.applying
        if applying is not None:
            reason += f" (applying entry {applying.index} {applying.hash.hex()})"
        if isinstance(error, Corrupt) and error.path.is_relative_to(self._data.path / "state"):
            # The next start would only find it by reading all of the state.
            with contextlib.suppress(OSError):
                self._data.record_damage(error.detail)
        log.critical("node=%d failed reason=%s", self.config.node_id, reason, exc_info=error)
        if isinstance(error, UpgradeRequired):
            self._notices.unsupported(self.config.node_id, str(error))
        unsent = Stopped(f"this node has failed: {reason}")
        self.node.fail(reason, unsent, Disconnected(unsent.args[0]))
        self._loop.create_task(self._transport.stop())

    def _on_loop_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        is_connection = "transport" in context or "protocol" in context
        # uvloop loses the future of a TLS handshake that fails while its dialler is cancelled.
        is_forgotten = "future" in context and not isinstance(context["future"], asyncio.Task)
        if isinstance(error, OSError) and (is_connection or is_forgotten):
            # A peer's connection was lost or couldn't be established; the transport retries it.
            log.warning("node=%d %s: %s", self.config.node_id, context.get("message"), error)
            return
        self._fail(error if error is not None else RuntimeError(context.get("message")))

    # ---------------------------------------------------------------- callers, from any thread

    def observe(self) -> tuple[HaStatus, Statistics]:
        """Return status and statistics, for metrics, also of a failed node.

        RequestTimeout if the node's thread doesn't answer.
        """
        if self.is_inherited:
            raise Forked
        self.statistics.state_bytes = self._threads.state_bytes
        self.statistics.spool_bytes = self._threads.spool_bytes
        waiter, deadline = ThreadWaiter(), self._clock.monotonic() + OBSERVE_TIMEOUT_S
        read = ReadOperation(waiter, deadline, Node.status, is_linearizable=False)
        with contextlib.suppress(Stopped):
            self.submit((read,))
            if not waiter.wait(OBSERVE_TIMEOUT_S):
                raise RequestTimeout("the node's thread does not answer")
            if isinstance(waiter.result, HaStatus):
                return waiter.result, self.statistics
        return self.node.status(), self.statistics

    def submit(self, operations: Sequence[Operation]) -> Sequence[Operation]:
        """Submit operations, in order; return those for which the queue has no room.

        Stopped if the node has stopped or failed. Forked if it runs in another process.
        """
        if self.is_inherited:
            raise Forked
        with self._submitted.lock:
            if self.has_ended:
                raise self._ended()
            node = self.node
            refused = self._submitted.put(operations, node.write_bytes_held, node.read_bytes_held)
            is_draining, self._submitted.is_draining = self._submitted.is_draining, True
        if not is_draining:
            self._call(self._drain)
        return refused

    def unanswered(self) -> list[Operation]:
        """Return the operations without a result, as of a moment during this call."""
        with self._submitted.lock:
            queued = self._submitted.queued()
        return queued + self.node.unanswered()

    def _ended(self) -> RafthaError:
        if self.node.failure and self.node.status().role == "failed":
            return Stopped(f"this node has failed: {self.node.failure}")
        return Stopped("the node is stopped")

    def _drain(self) -> None:
        with self._submitted.lock:
            if self._is_reopening:
                # Operations wait. `is_draining` stays set, so that only `_reopen` calls this again.
                self._submitted.is_draining = True
                return
            operations, held = self._submitted.take()
        if not self.node.failure:
            try:
                self.node.submit(operations, held)
                with self._submitted.lock:
                    self._submitted.taken()
                return
            except Exception as error:  # noqa: BLE001 - a supervisor: whatever it is ends the node
                self._fail(error)
        with self._submitted.lock:
            self._submitted.taken()
        for operation in operations:
            if operation.waiter is not None:
                self.node.deliver(operation, self._ended())
        self.flush()

    # ---------------------------------------------------------------- Host

    def send(self, message: PeerMessage) -> None:
        self._transport.send(message)

    def is_connected(self, peer: int) -> bool:
        return self._transport.is_connected(peer)

    def hang_up(self, peer: int) -> None:
        self._transport.hang_up(peer)

    def write(self, write: Write) -> None:
        self._threads.write(write, self.node.on_written)

    def seal_log(self, commit: int) -> None:
        self._threads.seal(commit, self.node.on_sealed)

    def read_log(self, request: LogRead) -> None:
        self._threads.read_log(request.index, partial(self._on_log_read, request))

    def _on_log_read(self, request: LogRead, result: tuple[LogPosition, list[Entry]] | int) -> None:
        if isinstance(result, int):
            self.node.on_log_compacted(request, result)
        else:
            self.node.on_log_read(request, *result)

    def checkpoint(self, frozen: Frozen, cut: LogCut, *, with_digest: bool) -> None:
        self._threads.checkpoint(frozen, cut, with_digest=with_digest)

    def set_members(self, membership: Membership) -> None:
        self._moves.on_membership(membership)
        self._transport.set_members(**self._moves.peers(membership))

    def on_refused(self) -> None:
        self.statistics.peers_refused += 1

    def on_removed(self) -> None:
        if not self.node.failure:
            self.node.on_removed()

    def end_healing(self, generation: int) -> None:
        self._data.end_healing(generation)
        self._transport.introduce(**introductions.said_of(self._data, self._waiting))
        self.node.on_healed(generation)

    def deliver(self, waiter: Any, result: Any) -> None:
        self._results.deliver(waiter, result)

    def deliver_each(self, waiters: Sequence[Any], results: Sequence[Any]) -> None:
        self._results.deliver_each(waiters, results)

    def flush(self) -> None:
        self._results.flush()

    def emit(self, event: HaEvent) -> None:
        self._events.publish(event)
        self.statistics.events[type(event).__name__] += 1
        log_event(log, event)
        if isinstance(event, RoleChanged) and self._resigned is not None:
            self._resigned.set()

    def wake(self) -> None:
        if not self._is_turn_due:
            self._is_turn_due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._is_turn_due = False
        try:
            self.node.turn()
        except (SystemExit, KeyboardInterrupt) as error:
            # Raised by a command. It would end the loop and leave all other threads running.
            self._fail(error)

    # ---------------------------------------------------------------- Receiver

    def on_message(self, message: PeerMessage) -> None:
        if not self.node.failure:
            (self._waiting or self.node).on_message(message)

    def on_connected(self, peer: int, hello: Hello) -> None:
        if self.node.failure or (self._waiting and self._waiting.on_connected(peer, hello)):
            return
        self._notices.supported(peer)
        self.node.on_connected(peer, hello.client_address, hello.incarnation)
        if introductions.must_heal(self.node.core, self._data.incarnation, hello):
            self.heal_log(self.node.core.log.last_index)

    def on_disconnected(self, peer: int, reason: str) -> None:
        if not self.node.failure:
            (self._waiting or self.node).on_disconnected(peer, reason)

    def check_hello(self, hello: Hello) -> str:
        return self._notices.refusal(self.node, hello)
