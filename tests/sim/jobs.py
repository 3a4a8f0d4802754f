"""Blocking code in virtual time: each job is a real thread, and one of all threads runs at a time.

Theory of operation. What a real node's backup threads do blocks: it sleeps, and it waits for
destinations. Here such a job runs in a thread of its own, which is handed a baton by an event of
the simulation and gives it back when it sleeps or ends. So its code runs as it is, between two
events, and the seed decides when. A job whose member has crashed is ended where it sleeps.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Protocol

from tests.sim.world import World


class JobEnded(BaseException):
    """The job's process has died: it goes no further."""


class Actor(Protocol):
    """The member that a job belongs to."""

    life: int
    paused_until: float

    def run(self, work: Callable[..., None], *args: Any) -> None:
        """Do something that may be the end of its process."""
        ...


class Job:
    """One run of a blocking function."""

    def __init__(
        self, world: World, actor: Actor, work: Callable[[Job], Any], done: Callable[[Any], None]
    ) -> None:
        """Call `work` in virtual time, and `done` with its result in an event of `actor`."""
        self.is_over = False
        self.is_cancelled = False
        self._world = world
        self._actor = actor
        self._work = work
        self._done = done
        self._is_dead = False
        self._delay = 0.0
        self._result: Any = None
        self._error: BaseException | None = None
        self._go = threading.Semaphore(0)
        self._back = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        world.at(0.0, actor.run, self._resume, actor=actor)

    @property
    def is_current(self) -> bool:
        """Whether the calling thread is this job's."""
        return threading.current_thread() is self._thread

    def sleep(self, seconds: float) -> None:
        """In the job: let virtual time pass."""
        self._delay = max(seconds, 0.0)
        self._back.release()
        self._go.acquire()
        if self._is_dead:
            raise JobEnded

    def end(self) -> None:
        """Its process has died."""
        if not self.is_over:
            self._is_dead = True
            self._switch()
            assert self.is_over, "a job that has died sleeps no more"

    def _run(self) -> None:
        self._go.acquire()
        try:
            if not self._is_dead:
                self._result = self._work(self)
        except JobEnded:
            pass
        except BaseException as error:  # noqa: BLE001 - raised where the world sees it
            self._error = error
        self.is_over = True
        self._back.release()

    def _switch(self) -> None:
        self._go.release()
        self._back.acquire()

    def _resume(self) -> None:
        if self.is_over:
            return
        self._switch()
        if not self.is_over:
            self._world.at(self._delay, self._actor.run, self._resume, actor=self._actor)
            return
        self._thread.join()
        if self._error is not None:
            raise self._error
        if not self.is_cancelled:
            self._world.at(0.0, self._done, self._result, actor=self._actor)
