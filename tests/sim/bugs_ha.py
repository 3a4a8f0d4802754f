"""Bugs to plant in what makes leaders come and go as wished, and in what callers are told of ages
and disks. See `bugs.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from raftha.core import Raft, ReadState
from raftha.core.durable_indexes import DurableIndexes
from raftha.core.election import Election
from raftha.core.leader import Leadership
from raftha.events import FailoverCompleted
from raftha.membership import Membership
from raftha.node import acknowledgements
from raftha.node.acknowledgements import Acknowledgements
from raftha.node.administration import Administration
from raftha.node.operations import TransferOperation
from raftha.node.reads import ReadQueue
from raftha.node.watch.failover import FailoverWatch
from raftha.node.watch.placement import LeaderPlacement
from tests.sim.planting import Bug, Patch


def campaigns_unasked() -> list[Patch]:
    """A node that isn't to campaign by itself does, when its leader is silent."""
    return [(Election, "_campaigns_by_itself", lambda self: True)]


def silent_leader_kept() -> list[Patch]:
    """A learner, standby or healing member never loses a leader of which nothing comes."""
    original = Election._lose_silent_leader

    def lose_silent_leader(self: Election) -> None:
        if self.is_voter:
            original(self)

    return [(Election, "_lose_silent_leader", lose_silent_leader)]


def campaign_forgotten() -> list[Patch]:
    """A node that is asked to campaign does nothing about it."""
    return [(Raft, "campaign", lambda self: None)]


def others_not_asked() -> list[Patch]:
    """Only the wanted node is asked to campaign, though it may be unable to win."""
    return [(Administration, "_whose_turn", lambda self, target, tries: target)]


def transfer_done_when_begun() -> list[Patch]:
    """An operator is told that another node leads once the leader was asked to hand over."""
    original = Administration._ask_transfer

    def ask_transfer(self: Administration, operation: TransferOperation) -> None:
        original(self, operation)
        if self._core.leader is not None:
            self._end_transfers(operation.target, None)

    return [(Administration, "_ask_transfer", ask_transfer)]


def leadership_stays_away() -> list[Patch]:
    """Leadership doesn't return to the preferred region."""
    return [(LeaderPlacement, "_better_voters", lambda self: [])]


def leadership_wanders() -> list[Patch]:
    """A leader also hands over to a node in an equally good region."""

    def better_voters(self: LeaderPlacement) -> list[int]:
        here = self._place(self._core.id)
        voters = (voter for voter in self._core.membership.voters if voter != self._core.id)
        return [voter for voter in voters if self._place(voter) <= here]

    return [(LeaderPlacement, "_better_voters", better_voters)]


def last_region_preferred() -> list[Patch]:
    """Leadership goes to the region that was named last."""

    def place(self: LeaderPlacement, node_id: int) -> int:
        return -self._core.membership.place(node_id, self._regions)

    return [(LeaderPlacement, "_place", place)]


def standbys_become_voters() -> list[Patch]:
    """A standby that has caught up is made a voter, as a learner is."""
    original = Leadership.on_membership

    def on_membership(self: Leadership) -> None:
        original(self)
        members = self._log.membership.members
        learners = (peer for peer in self.progress if not members[peer].is_voter)
        self._catch_ups.follow(learners, self._log.last_index)

    return [(Leadership, "on_membership", on_membership)]


def standbys_forgotten() -> list[Patch]:
    """The log doesn't record that a learner is a standby."""
    original = Membership.encode

    def encode(self: Membership) -> bytes:
        members = {i: member._replace(is_standby=False) for i, member in self.members.items()}
        return original(Membership(members, self.removed))

    return [(Membership, "encode", encode)]


def promotion_ignored() -> list[Patch]:
    """A promoted standby stays a standby."""
    original = Membership.with_standby

    def with_standby(self: Membership, node_id: int, *, is_standby: bool) -> Membership:
        return original(self, node_id, is_standby=True)

    return [(Membership, "with_standby", with_standby)]


def sync_content_with_a_majority() -> list[Patch]:
    """Who wants more than a majority to have a write is released as soon as a majority has it."""
    return [(acknowledgements, "_wanted", lambda acks, membership: membership.quorum)]


def durable_indexes_of_what_was_sent() -> list[Patch]:
    """A follower believes that every member named by the leader has what is committed."""

    def learn(self: DurableIndexes, commit: int, behind: tuple[int, ...]) -> None:
        for node_id in behind[::2]:
            self._known[node_id] = max(self._known.get(node_id, 0), commit)

    return [(DurableIndexes, "learn", learn)]


def late_is_not_said() -> list[Patch]:
    """Who has waited too long for others to have a write gets the receipt of one who has not."""

    def expire(self: Acknowledgements, now: float) -> float:
        for waiting in self._waiting:
            if waiting.deadline <= now and waiting.operation.waiter is not None:
                self._deliver(waiting.operation, self._result(waiting))
        self._waiting = [w for w in self._waiting if w.operation.waiter is not None]
        return min((waiting.deadline for waiting in self._waiting), default=float("inf"))

    return [(Acknowledgements, "expire", expire)]


def age_from_the_answer() -> list[Patch]:
    """The state is taken for as fresh as the leader's answer, not as the question was."""
    original = ReadQueue.run_confirmed

    def run_confirmed(self: ReadQueue, applied_index: int) -> None:
        is_answered = bool(self._confirmed) and self._confirmed[0][0] <= applied_index
        original(self, applied_index)
        if is_answered:
            self._is_anew = True  # type: ignore[attr-defined]

    def is_fresh(self: ReadQueue, max_age_s: float, now: float) -> bool:
        if self.__dict__.pop("_is_anew", False):
            self._fresh_at = now
        return now - self._fresh_at <= max_age_s

    return [(ReadQueue, "run_confirmed", run_confirmed), (ReadQueue, "is_fresh", is_fresh)]


def age_before_applied() -> list[Patch]:
    """The state is taken for fresh once the leader has answered, before it is applied here."""
    original = ReadQueue.answer

    def answer(self: ReadQueue, answers: Iterable[ReadState]) -> bool:
        states = list(answers)
        if self._asking and any(read_id == self._id for read_id, _ in states):
            self._fresh_at = self._asked_at
        return original(self, states)

    return [(ReadQueue, "answer", answer)]


def age_ignored() -> list[Patch]:
    """A state that was fresh once is taken for fresh for ever."""

    def is_fresh(self: ReadQueue, max_age_s: float, now: float) -> bool:
        return self._fresh_at > float("-inf")

    return [(ReadQueue, "is_fresh", is_fresh)]


def failover_not_reported() -> list[Patch]:
    """A node that has heard of a new leader from that one itself reports no failover."""
    original = FailoverWatch._on_term

    def on_term(self: FailoverWatch, now: float, message: Any) -> None:
        if message is None or message.sender != self._core.leader:
            original(self, now, message)

    return [(FailoverWatch, "_on_term", on_term)]


def failover_reported_twice() -> list[Patch]:
    """A failover that is over is reported once more."""
    original = FailoverWatch.take_completed

    def take_completed(self: FailoverWatch, now: float) -> FailoverCompleted | None:
        episode = self._episode
        completed = original(self, now)
        if completed is not None and not hasattr(self, "_was_reported"):
            self._episode, self._was_reported = episode, True  # type: ignore[attr-defined]
        return completed

    return [(FailoverWatch, "take_completed", take_completed)]


def election_measured_from_the_last_word() -> list[Patch]:
    """What an election took includes how long it took to notice that one was needed."""
    original = FailoverWatch.take_completed

    def take_completed(self: FailoverWatch, now: float) -> FailoverCompleted | None:
        if self._episode is not None:
            self._episode.began_at = self._episode.last_contact_at
        return original(self, now)

    return [(FailoverWatch, "take_completed", take_completed)]


BUGS: tuple[Bug, ...] = (
    campaigns_unasked,
    silent_leader_kept,
    campaign_forgotten,
    others_not_asked,
    transfer_done_when_begun,
    leadership_stays_away,
    leadership_wanders,
    last_region_preferred,
    standbys_become_voters,
    standbys_forgotten,
    promotion_ignored,
    sync_content_with_a_majority,
    durable_indexes_of_what_was_sent,
    late_is_not_said,
    age_from_the_answer,
    age_before_applied,
    age_ignored,
    failover_not_reported,
    failover_reported_twice,
    election_measured_from_the_last_word,
)
