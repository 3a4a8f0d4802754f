"""A node's role in a term, and how it changes: term, vote, role, leader.

Theory of operation. `Election` is the candidate's and the voter's side, and what a follower knows
of its leader. The leader's side is in `leader.py`. `Election` asks for votes, grants them and
counts them. It reports a won election, and `Raft` then creates a `Leadership` for the term.

A node first asks for pre-votes without changing its term (thesis 9.6), so a node that was cut off
can't depose a leader when it returns. Term and vote are durable before a message of that term
leaves, and a candidate counts its own vote only then (R1).

A lost connection to the leader is a strong hint that its process is gone. The follower drops its
lease and asks for pre-votes after a short delay instead of the election timeout; the delay is
staggered by node id and randomised. If only this node's own link broke, the other voters refuse it
because of their leases, and nothing happens. The node keeps its promises (`lease.py`): the delay
begins when the promise ends.

Preferred regions only stretch a voter's timeout, so a voter in a preferred region usually asks
first. Without `CoreConfig.campaigns` a node doesn't campaign when its timeout ends, except in the
first election of a new cluster.

A follower that receives nothing from its leader for its timeout no longer knows a leader. That
doesn't depend on its right to campaign: learners, standbys and healing nodes lose it, too.

A node that knows of a committed entry never helps to elect a log that ends before it, its own
included. Raft alone doesn't need this rule. It matters if a voter has lost entries that it
acknowledged (`follower.py`): a node that lags but has heard the leader's commit index then waits
for a member that has these entries.

A node that isn't a voter by its own log, that was removed, or that heals from the loss of its log
never campaigns. A removed or healing node grants no votes either.
"""

from __future__ import annotations

from collections.abc import Callable

from raftha.core import timeouts
from raftha.core.clocks import ClockReadings
from raftha.core.healing_generation import HealingGeneration
from raftha.core.lease import Promise
from raftha.core.log import RaftLog
from raftha.core.messages import Message, TimeoutNow, VoteReply, VoteRequest
from raftha.core.outbox import Outbox
from raftha.core.ready import CoreConfig
from raftha.core.role import Role
from raftha.entry import HardState
from raftha.events import HaEvent, LeaderElected, LeaderLost, RoleChanged


class Election:
    """Term, vote, role and leader of one node. It shares log, outbox and events with `Raft`."""

    def __init__(
        self,
        config: CoreConfig,
        hard_state: HardState,
        log: RaftLog,
        outbox: Outbox,
        healing_generation: HealingGeneration,
        events: list[HaEvent],
        *,
        random_below: Callable[[int], int],
        clocks: ClockReadings,
    ) -> None:
        """Start as a follower that knows no leader, in the term that is on disk."""
        self.id = config.node_id
        self.term, self.vote = hard_state.term, hard_state.vote
        self.role = Role.FOLLOWER
        self.leader: int | None = None
        self.is_removed = False
        self.clocks = clocks
        self.promise = Promise(config.lease_ms, config.promised_ms, clocks.boottime_ns)
        self._config = config
        self._log = log
        self._outbox = outbox
        self._healing_generation = healing_generation
        self._events = events
        self._random_below = random_below
        self._votes: dict[int, bool] = {}
        self._asked_term = 0
        self._asked_ns = 0
        self._elapsed_ticks = 0
        self._timeout_ticks = 0
        # This node knows no leader. If there is one, asking for pre-votes early does no harm.
        self._is_suspecting = True
        self._announced_term = 0
        self._terms_without_leader = 0
        self._set_timeout()

    @property
    def is_voter(self) -> bool:
        """Whether this node is fit to campaign, as far as it knows."""
        is_fit = not self.is_removed and not self._healing_generation.is_healing
        return is_fit and self.id in self._log.membership.voters

    @property
    def has_lease(self) -> bool:
        """Whether a leader was active too recently for another to be elected (R7)."""
        return self.leader is not None and self._elapsed_ticks < self._config.election_ticks

    @property
    def is_durable(self) -> bool:
        """Whether term and vote are on disk."""
        return self._outbox.is_durable(self.term, self.vote)

    def breaks_promise(self, message: Message) -> bool:
        """Whether this asks for a vote that is promised to another node, outside a transfer."""
        is_asked = isinstance(message, VoteRequest) and not message.transfer
        return is_asked and self.promise.forbids(message.sender)

    def send(self, message: Message) -> None:
        """Send a message of this term."""
        self._outbox.send(message, self.term, self.vote)

    def report(self, event: HaEvent) -> None:
        """Have the caller report an event."""
        self._events.append(event)

    # ---------------------------------------------------------------- timeouts

    def tick(self) -> None:
        """A tick has passed in which this node didn't lead."""
        if self.leader is None and self.promise.forbids(self.id):
            return  # The timeout begins when the promise ends; other promises end then, too.
        self._elapsed_ticks += 1
        if self._elapsed_ticks < self._timeout_ticks or self.promise.forbids(self.id):
            return  # As long as a promise to the leader holds, that may lead by its lease.
        self._lose_silent_leader()
        if not self._may_campaign():
            return
        if self._campaigns_by_itself():
            self._campaign(pre=True)
        else:
            self._set_role(Role.FOLLOWER)  # A campaign that an operator asked for has failed.

    def _lose_silent_leader(self) -> None:
        """The leader sent nothing for a timeout.

        A node that can't campaign forgets it, too. Otherwise its status names a leader that may be
        gone, and its reads and writes go there.
        """
        if self.role is Role.FOLLOWER and self.leader is not None:
            self.lose_leader("timeout")

    def disconnected(self, peer: int) -> None:
        """The connection to the leader broke."""
        self.lose_leader("disconnected")
        self._is_suspecting = True
        self._elapsed_ticks = 0
        membership = self._log.membership
        before = sum(voter < self.id for voter in membership.voters if voter != peer)
        self._timeout_ticks = timeouts.disconnect_timeout_ticks(
            self._config.election_ticks,
            before,
            better_regions=membership.better_regions(self.id, self._config.regions, peer),
            random_below=self._random_below,
        )

    def stand_back(self) -> None:
        """Let the other voters campaign first."""
        self._timeout_ticks += 2 * self._config.election_ticks

    def _set_timeout(self) -> None:
        membership = self._log.membership
        self._timeout_ticks = timeouts.election_timeout_ticks(
            self._config.election_ticks,
            is_alone=membership.voters == (self.id,),
            is_suspecting=self._is_suspecting,
            terms_without_leader=self._terms_without_leader,
            better_regions=membership.better_regions(self.id, self._config.regions),
            random_below=self._random_below,
        )

    def _may_campaign(self) -> bool:
        """Whether this node may ask for votes now; a transfer skips this check."""
        # On a slow disk the last vote may not be durable yet. A node that asked for the next term
        # before that vote counts would never win one.
        is_free = self.is_voter and self.is_durable and not self.promise.forbids(self.id)
        return is_free and self._log.last_index >= self._log.known_commit

    def _campaigns_by_itself(self) -> bool:
        """Whether the timeout starts a campaign; a new log wins only in a new cluster."""
        is_alone = self._log.membership.voters == (self.id,)
        return self._config.campaigns or is_alone or self._log.is_new

    # ---------------------------------------------------------------- terms and roles

    def on_leader_contact(self, leader: int) -> None:
        """A message of this term's leader arrived: the leader is alive."""
        if self.role is Role.FOLLOWER and self.leader == leader:
            self._elapsed_ticks = 0
        else:
            self.become_follower(self.term, leader)

    def become_follower(self, term: int, leader: int | None) -> None:
        """Follow `leader` in `term`, this one or a later; None: the leader isn't known."""
        if self.leader is not None and self.leader != leader:
            self.lose_leader("term")
        if leader is not None:
            # Before the timeout is set: with a live leader it must be the full one.
            self._is_suspecting = False
        self._reset(term, has_leader=leader is not None)
        self._set_role(Role.FOLLOWER)
        if leader is not None:
            self._set_leader(leader)

    def become_leader(self) -> None:
        """Lead the term of the election that this node has won."""
        membership = self._log.membership
        votes = sum(self._votes.get(voter, False) for voter in membership.voters)
        assert self.role is Role.CANDIDATE, "only a candidate wins an election"
        assert self.is_durable, "a candidate's own vote is durable before it counts (R1)"
        assert votes >= membership.quorum, "a leader has the votes of a quorum of voters"
        self._reset(self.term)
        self._set_role(Role.LEADER)
        self._set_leader(self.id)

    def lose_leader(self, reason: str) -> None:
        """Forget the leader, and report it lost."""
        if self.leader is not None:
            lost, self.leader = self.leader, None
            event = LeaderLost(reporter=self.id, leader=lost, term=self.term, reason=reason)
            self._events.append(event)

    def _reset(self, term: int, *, has_leader: bool = False) -> None:
        self._terms_without_leader = 0 if has_leader else self._terms_without_leader
        if term != self.term:
            assert term > self.term, "a term never goes back"
            self.term, self.vote = term, 0
            self._terms_without_leader += not has_leader
            self._outbox.drop_acknowledgements()
        self._elapsed_ticks = 0
        self._set_timeout()
        self._votes = {}

    def _set_role(self, role: Role) -> None:
        if role is not self.role:
            self.role = role
            self._events.append(RoleChanged(reporter=self.id, role=role.value, term=self.term))

    def _set_leader(self, leader: int) -> None:
        # The same leader found again, or in a new term, is news too: messages may have been lost.
        is_own = leader == self.id
        assert is_own is (self.role is Role.LEADER), "a node leads only a term that it has won"
        assert self.leader in (None, leader), "a term has one leader"
        is_news = leader != self.leader or self.term != self._announced_term
        self.leader, self._announced_term = leader, self.term
        self._is_suspecting = False
        self._terms_without_leader = 0
        if is_news:
            self._events.append(LeaderElected(reporter=self.id, leader=leader, term=self.term))

    # ---------------------------------------------------------------- asking for votes

    def campaign(self) -> None:
        """Ask for votes on an operator's request, if no leader is known."""
        if self.role is Role.FOLLOWER and self.leader is None and self._may_campaign():
            self._campaign(pre=True)

    def on_timeout_now(self, message: TimeoutNow) -> None:
        """The leader hands over to this node."""
        is_asked = self.role is Role.FOLLOWER and message.sender == self.leader
        if is_asked and self.is_voter:
            self._campaign(pre=False, transfer=True)

    def on_vote_reply(self, message: VoteReply) -> bool:
        """A voter has replied; True if that wins the election."""
        wanted = Role.PRE_CANDIDATE if message.pre else Role.CANDIDATE
        if self.role is not wanted:
            return False
        self.clocks.record(message.sender, self._asked_ns, message.time_us)
        return self._count_vote(message.sender, message.granted)

    def count_own_vote(self) -> bool:
        """Count this node's own vote, now durable (R1); True if that wins the election."""
        return self._count_vote(self.id, True)

    def _campaign(self, *, pre: bool, transfer: bool = False) -> None:
        assert self.role is not Role.LEADER, "a leader doesn't campaign against itself"
        assert not self.is_removed, "a removed node doesn't campaign"
        assert not self._healing_generation.is_healing, "a node that heals doesn't campaign"
        self.lose_leader("transfer")
        self._reset(self.term if pre else self.term + 1)
        if pre:
            self._set_role(Role.PRE_CANDIDATE)
        else:
            self._vote_for(self.id)
            self._set_role(Role.CANDIDATE)
        term = self.term + 1 if pre else self.term
        if self._asked_term != term:
            # Of several requests for the same term, a reply doesn't say which one it answers.
            self._asked_term, self._asked_ns = term, self.clocks.boottime_ns()
        last_index, last_term = self._log.last_index, self._log.last_term
        for peer in self._log.membership.voters:
            if peer == self.id:
                continue
            self.send(
                VoteRequest(
                    to=peer,
                    sender=self.id,
                    term=term,
                    last_index=last_index,
                    last_term=last_term,
                    pre=pre,
                    transfer=transfer,
                )
            )
        if pre:
            # A pre-vote binds no node; a real one counts once it is durable, in `Raft.advance`.
            self._count_vote(self.id, True)

    def _count_vote(self, voter: int, granted: bool) -> bool:
        """Count a vote; True if a candidate has won. Enough pre-votes start the real campaign."""
        self._votes.setdefault(voter, granted)
        membership = self._log.membership
        votes = [self._votes[voter] for voter in membership.voters if voter in self._votes]
        if (granted_count := sum(votes)) >= membership.quorum:
            if self.role is Role.CANDIDATE:
                return self._votes.get(self.id, False)
            self._campaign(pre=False)
        elif len(votes) - granted_count >= membership.quorum:
            self._set_role(Role.FOLLOWER)
        return False

    # ---------------------------------------------------------------- giving votes

    def on_vote_request(self, message: VoteRequest) -> None:
        """A candidate asks for this node's vote, in this term or, with `pre`, for the next."""
        is_free = self.vote in (0, message.sender) and self.leader is None
        may_vote = is_free or (message.pre and message.term > self.term)
        # A node that heals may have voted for another in this term, and may lack entries that the
        # candidate must have.
        may_vote = may_vote and not self._healing_generation.is_healing
        granted = may_vote and self._log.is_up_to_date(message.last_index, message.last_term)
        # Then this node, or a voter, has lost what it acknowledged.
        granted = granted and message.last_index >= self._log.known_commit
        # Only candidates that have lost their disks could need the vote of a removed node. Enough
        # removed nodes would agree on another log than the members that replaced them.
        granted = granted and not self.is_removed
        # A refusal carries this node's term, so that a candidate that is behind adopts it.
        term = message.term if granted else self.term
        if granted and not message.pre:
            self._vote_for(message.sender)
            self._elapsed_ticks = 0
            self._set_timeout()
        self._send_vote(message, term, granted=granted)

    def _vote_for(self, candidate: int) -> None:
        assert self.vote in (0, candidate), "a node votes once a term (R1)"
        self.vote = candidate

    def refuse(self, message: VoteRequest) -> None:
        """Refuse a candidate of an earlier term, and report this term to it."""
        self._send_vote(message, self.term, granted=False)

    def _send_vote(self, request: VoteRequest, term: int, *, granted: bool) -> None:
        self.send(
            VoteReply(
                to=request.sender,
                sender=self.id,
                term=term,
                granted=granted,
                pre=request.pre,
                healing_generation=self._healing_generation.current,
                time_us=self.clocks.own_us(),
            )
        )
