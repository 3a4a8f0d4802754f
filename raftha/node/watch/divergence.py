"""Compares the members' states in the background, and has those replaced that differ.

Theory of operation. All replicas that have applied the same entry must have the same state. A bug,
a command that depends on more than its arguments, or damage that no checksum shows can break that
without an error. So the leader has digests compared, once in `digest_interval_hours`:

    leader                              members
    DigestRequest(index)        ->      wait for that entry
    appends entry `index`, empty
                                        apply it; freeze a checkpoint; hash the store, in a thread
                                <-      DigestReport(index, digest)
    compares the digests
    DigestVerdict(index, ...)   ->      status; a member that diverged replaces its state

The index is that of the leader's next entry, which is empty or begins a full backup. So the request
comes before the entry, and the entry comes soon. A member takes the digest only as of exactly this
entry. If it can't, because a checkpoint is under way or the request came late, it reports that, and
the comparison is tried again later.

A comparison needs no further agreement. A digest covers the entry's position with the hash of the
log up to it, and only committed entries are applied. So digests of one index are of one history,
whatever leader asked for them; a digest that nothing waits for is ignored. A change
of leader, a restart, healing, or a snapshot that is installed costs a comparison and nothing more.

If a majority of the voters has one digest, members with another one have diverged: they replace log
and state (`storage/directory/healing.py`). A member checks that the verdict concerns a digest that
it took itself. Without a majority, nothing shows which state is right, and nothing is replaced. A
member that has diverged again in the next comparison is left alone too, until the interval is over:
what makes it differ would do so again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from raftha.config import HaConfig
from raftha.core import Raft
from raftha.entry import LogPosition
from raftha.events import ReplicaDiverged
from raftha.node.checkpoints import Checkpoints
from raftha.node.comparison import Outcome
from raftha.node.host import Host
from raftha.node.messages import DigestMessage, DigestReport, DigestRequest, DigestVerdict
from raftha.storage.state.state import StateDigest

FIRST_AFTER_S = 3600.0
"""The first comparison after a start comes after this time, if the interval is longer."""
RETRY_S = 60.0
"""An incomplete comparison is tried again after this time, doubled each time up to the interval."""
ROUND_S = 3600.0
"""A comparison waits no longer for reports."""


class Compared(NamedTuple):
    """The last comparison that this node knows of."""

    index: int  # type: ignore[assignment]  # shadows tuple.index, which is never called
    diverged: tuple[int, ...]


@dataclass(slots=True)
class _Round:
    """A comparison under way: what members have answered; None if they could take no digest."""

    index: int
    ends_at: float
    waits_for: set[int]
    position: LogPosition | None = None
    """That of entry `index`, once it is appended."""
    answers: dict[int, tuple[int, bytes] | None] = field(default_factory=dict)


class DivergenceWatch:
    """The comparisons that this node makes as leader, and takes part in."""

    def __init__(
        self, config: HaConfig, core: Raft, host: Host, checkpoints: Checkpoints, now: float
    ) -> None:
        self.last = Compared(0, ())
        self.outcome: Outcome | None = None
        """The last comparison that this node has made as leader."""
        self._core = core
        self._host = host
        self._checkpoints = checkpoints
        self._interval_s = 3600 * config.digest_interval_hours
        self._due_at = now + min(self._interval_s, FIRST_AFTER_S)
        self._round: _Round | None = None
        self._failures = 0
        self._replaced: tuple[int, ...] = ()
        """The members that the last comparison had replaced, until the interval is over."""
        self._replaced_until = 0.0
        self._wanted: DigestRequest | None = None
        """The request that this node has yet to answer."""
        self._own: tuple[int, bytes] = (0, b"")
        """The last digest that this node took for a comparison, and its index."""

    def on_tick(self, now: float) -> None:
        """Begin a comparison that is due, or end one."""
        wanted = self._wanted
        if wanted is not None and not self._checkpoints.is_coming(wanted.index):
            self._answer(wanted, None)
        if not self._core.is_leader:
            self._round = None
        elif self._round is not None:
            if now >= self._round.ends_at or not self._is_awaited(self._round):
                self._judge(self._round, now)
        elif self._interval_s and now >= self._due_at and self._core.can_propose:
            self._begin(now)

    def on_message(self, message: DigestMessage, now: float) -> None:
        """The leader asks for a digest or reports a comparison, or a member answers."""
        match message:
            case DigestRequest():
                self._take(message)
            case DigestReport():
                answer = (message.state_format, message.digest) if message.digest else None
                self._record(message.sender, message.index, answer)
            case DigestVerdict() if message.sender == self._core.leader:
                self._on_verdict(message, now)
            case _:
                pass  # The verdict of an earlier leader.

    def on_digest(self, index: int, digest: StateDigest | None) -> None:
        """This node has made a digest, which may be one that was asked for."""
        wanted = self._wanted
        if wanted is not None and wanted.index == index:
            self._own = index, digest.whole if digest is not None else b""
            self._answer(wanted, digest)

    # ---------------------------------------------------------------- the member's side

    def _take(self, request: DigestRequest) -> None:
        self._checkpoints.compare_at(request.index)
        self._wanted = request
        if not self._checkpoints.is_coming(request.index):
            self._answer(request, None)

    def _answer(self, request: DigestRequest, digest: StateDigest | None) -> None:
        """Report a digest with the format that the state had then, which is a later one by now
        if the cluster has come to use another protocol."""
        self._wanted = None
        form, whole = (digest.form, digest.whole) if digest else (0, b"")
        report = DigestReport(
            to=request.sender,
            sender=self._core.id,
            index=request.index,
            state_format=form,
            digest=whole,
        )
        if request.sender == self._core.id:
            self._record(self._core.id, request.index, (form, whole) if digest else None)
        else:
            self._host.send(report)

    def _on_verdict(self, verdict: DigestVerdict, now: float) -> None:
        self.last = Compared(verdict.index, verdict.diverged)
        self._due_at = now + self._interval_s
        index, digest = self._own
        if verdict.heals and index == verdict.index and digest and digest != verdict.digest:
            self._host.heal_state(f"it differs from a majority's as of entry {index}")

    # ---------------------------------------------------------------- the leader's side

    def is_comparing(self, index: int) -> bool:
        """Whether this node, as leader, waits for digests as of this entry."""
        return self._core.is_leader and self._round is not None and self._round.index == index

    def begin_with(self, propose: Callable[[], int | None], now: float) -> int | None:
        """Propose an entry, and compare the states as of it, unless a comparison is under way."""
        is_wanted = self._interval_s > 0 and len(self._core.membership.voters) > 1
        is_possible = self._round is None and self._core.can_propose
        return self._ask_all(propose, now) if is_wanted and is_possible else propose()

    def compare_now(self, propose: Callable[[], int | None], now: float) -> int | None:
        """Propose an entry, and compare the states as of it; None if that isn't possible now.

        A node that is alone takes a digest too: it is compared with those of restored states.
        """
        if self._round is not None or not self._core.can_propose:
            return None
        return self._ask_all(propose, now)

    def _begin(self, now: float) -> None:
        if len(self._core.membership.voters) == 1:
            self._due_at = now + self._interval_s
            return
        appended = self._ask_all(lambda: self._core.propose(b"", 0, 0), now)
        assert appended is not None, "a leader that can propose appends an empty entry"

    def _ask_all(self, propose: Callable[[], int | None], now: float) -> int | None:
        """Have all members take a digest as of the leader's next entry, and propose that."""
        core = self._core
        index = core.log.last_index + 1
        members = core.membership.members.keys()
        others = {peer for peer in members if peer != core.id and self._host.is_connected(peer)}
        self._round = _Round(index, now + ROUND_S, {core.id, *others})
        for peer in others:
            self._host.send(DigestRequest(to=peer, sender=core.id, index=index))
        self._take(DigestRequest(to=core.id, sender=core.id, index=index))
        appended = propose()
        assert appended in (None, index), "a leader appends behind the end of its log"
        if appended is not None:
            self._round.position = core.log.last
        return appended

    def _record(self, member: int, index: int, answer: tuple[int, bytes] | None) -> None:
        if self._round is not None and self._round.index == index:
            self._round.answers[member] = answer

    def _is_awaited(self, comparison: _Round) -> bool:
        """Whether a member that can answer has yet to do so."""
        missing = comparison.waits_for - comparison.answers.keys()
        return any(m == self._core.id or self._host.is_connected(m) for m in missing)

    def _judge(self, comparison: _Round, now: float) -> None:
        """Compare what was answered, and report the result."""
        self._round = None
        membership = self._core.membership
        answers = {m: a for m, a in comparison.answers.items() if a is not None}
        votes = Counter(a for m, a in answers.items() if m in membership.voters)
        agreed, count = votes.most_common(1)[0] if votes else ((0, b""), 0)
        is_agreed = self._is_majority(count)
        if comparison.position is not None:
            digest, voters = agreed[1], len(membership.voters)
            self.outcome = Outcome(comparison.position, digest, count, voters)
        alike = {m: digest for m, (kind, digest) in answers.items() if kind == agreed[0]}
        diverged = tuple(sorted(m for m, digest in alike.items() if digest != agreed[1]))
        if diverged and not is_agreed:
            diverged = tuple(sorted(alike))
        is_complete = is_agreed and membership.members.keys() <= alike.keys()
        replaces = bool(diverged) and is_agreed and not self._was_replaced(diverged, now)
        if diverged:
            self._report(comparison.index, diverged, is_agreed, now)
        self._plan(now, is_retried=bool(diverged) or not is_complete)
        if is_agreed or diverged:
            digest = agreed[1] if is_agreed else b""
            self._announce(comparison.index, digest, diverged, replaces, now)

    def _is_majority(self, voters: int) -> bool:
        return voters >= self._core.membership.quorum

    def _was_replaced(self, diverged: tuple[int, ...], now: float) -> bool:
        return now < self._replaced_until and not set(diverged).isdisjoint(self._replaced)

    def _report(self, index: int, diverged: tuple[int, ...], is_agreed: bool, now: float) -> None:
        if not is_agreed:
            detail = "no majority has the same state: nothing is replaced"
        elif self._was_replaced(diverged, now):
            detail = "they were replaced and have diverged again: they are left as they are"
        else:
            detail = "they replace their states"
        self._host.emit(
            ReplicaDiverged(
                reporter=self._core.id,
                index=index,
                diverged=diverged,
                heals=is_agreed and not self._was_replaced(diverged, now),
                detail=detail,
            )
        )

    def _plan(self, now: float, *, is_retried: bool) -> None:
        """Choose when the next comparison is due."""
        self._failures = self._failures + 1 if is_retried else 0
        pause_s = RETRY_S * 2 ** min(self._failures - 1, 20) if is_retried else self._interval_s
        self._due_at = now + min(pause_s, self._interval_s)

    def _announce(
        self, index: int, digest: bytes, diverged: tuple[int, ...], replaces: bool, now: float
    ) -> None:
        """Tell all members, and this node, which is the last: it may have to replace its state."""
        core, due_at = self._core, self._due_at
        if replaces:
            self._replaced, self._replaced_until = diverged, now + self._interval_s
        for member in sorted(core.membership.members, key=lambda m: (m == core.id, m)):
            heals = replaces and member in diverged
            verdict = DigestVerdict(member, core.id, index, digest, diverged, heals)
            if member == core.id:
                self._on_verdict(verdict, now)
            else:
                self._host.send(verdict)
        self._due_at = due_at
