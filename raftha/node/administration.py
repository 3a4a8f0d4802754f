"""Operators' requests: transfer leadership, add, move and remove members.

Theory of operation. Only the leader can carry these out, so a node sends its callers' requests to
the leader. It repeats them, marked as repeats, to a new leader and when no answer comes for a
while. A request names the desired state, not a step, so repeating it does no harm. A refusal comes
back as a reply. Success shows in this node's own state: the leader it knows, the membership it has
applied.

If no leader is known, the node asks the transfer's target to campaign. That election is like any
other: the target needs a majority and a log that is complete enough. If the target isn't elected,
other voters are asked in turn. One that is elected hands over once the target has caught up.

A leader that is being removed hands over first and sends no reply: the requester asks its successor
again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, assert_never

from raftha.core import Raft
from raftha.errors import (
    InvalidRequest,
    MembershipChangePending,
    NotLeader,
    RafthaError,
    Rejected,
    ReplicaTooSlow,
    RequestTimeout,
    TransferFailed,
    Unavailable,
    UpgradePending,
)
from raftha.membership import Member, Membership
from raftha.node.messages import (
    AdminMessage,
    MembershipReply,
    MembershipRequest,
    TransferReply,
    TransferRequest,
)
from raftha.node.operations import MembershipOperation, Operation, TransferOperation

ASK_AGAIN_AFTER_S = 0.25
HEARD_S = 1.0
"""How long a leader waits for word of voters before it refuses a removal for want of them."""
ASKS_UNTIL_OTHERS = 4

_REFUSALS: dict[str, type[Rejected]] = {
    kind.__name__: kind
    for kind in (
        InvalidRequest,
        MembershipChangePending,
        ReplicaTooSlow,
        TransferFailed,
        UpgradePending,
    )
}


class Administration:
    """Operators' requests on one node: those of its callers, and those sent to it as leader."""

    def __init__(
        self,
        core: Raft,
        membership: Membership,
        send: Callable[[AdminMessage], None],
        deliver: Callable[[Operation, Any], None],
        now: Callable[[], float],
        why_unfit: Callable[[int], str] = lambda node_id: "",
    ) -> None:
        """`membership` is the one that this node's state has applied.

        `why_unfit` says why a node's version can't take part in the cluster, "" if it can.
        """
        self._why_unfit = why_unfit
        self.why_not_now: Callable[[MembershipRequest], str] = lambda request: ""
        """Says why this node, as the leader, can't change the membership for now; "" if it can."""
        self.applied = membership
        self._core = core
        self._send = send
        self._deliver = deliver
        self._now = now
        self._transfers: list[TransferOperation] = []
        self._changes: list[MembershipOperation] = []
        self._short_since: dict[int, float] = {}
        """Since when a node could not be removed for want of others, by its id."""

    def pending(self) -> Sequence[Operation]:
        """Return the requests of this node's callers without a result."""
        return [o for o in (*self._transfers, *self._changes) if o.waiter is not None]

    def forget_expired(self) -> None:
        """Drop the requests that have a result."""
        self._transfers = [o for o in self._transfers if o.waiter is not None]
        self._changes = [o for o in self._changes if o.waiter is not None]

    def expire(self, now: float) -> float:
        """Fail the callers whose deadline has passed; return the next deadline."""
        earliest = float("inf")
        for operation in self.pending():
            if operation.deadline > now:
                earliest = min(earliest, operation.deadline)
            elif isinstance(operation, TransferOperation):
                self._deliver(operation, self._transfer_timeout(operation.target))
            else:
                assert isinstance(operation, MembershipOperation)
                self._deliver(operation, self._change_timeout(operation))
        self.forget_expired()
        return earliest

    def on_message(self, message: AdminMessage) -> None:
        """Another node sends a request, or the leader refuses one of this node's."""
        match message:
            case TransferRequest():
                error = self._hand_to(message.target)
                if error is not None:
                    self._send(
                        TransferReply(
                            to=message.sender,
                            sender=self._core.id,
                            target=message.target,
                            reason=str(error),
                        )
                    )
            case TransferReply():
                self._end_transfers(message.target, TransferFailed(message.reason))
            case MembershipRequest():
                self._on_membership_request(message)
            case MembershipReply():
                kind = _REFUSALS.get(message.kind, Rejected)
                self._end_changes(message.node_id, kind(message.reason))
            case _:
                assert_never(message)

    def on_leader(self) -> None:
        """A leader is known: it may be a transfer's target, and it gets the pending changes."""
        self._short_since.clear()
        if self._core.leader is not None:
            self._end_transfers(self._core.leader, None)
        for operation in self._changes:
            self._ask(operation)

    def on_tick(self) -> None:
        """Repeat the requests without an answer."""
        overdue = self._now() - ASK_AGAIN_AFTER_S
        for operation in self._changes:
            if operation.asked_at <= overdue:
                self._ask(operation)
        for transfer in list(self._transfers):
            if transfer.asked_at <= overdue:
                self._ask_transfer(transfer)

    def hand_over(self, candidates: Collection[int]) -> None:
        """Make one of `candidates` the leader, if one is active; on failure, the caller retries."""
        if self._core.can_propose:
            self._try(lambda: self._core.transfer(self._successor(candidates)))

    def on_membership(self, membership: Membership) -> None:
        """The state has applied another membership."""
        self.applied = membership
        for operation in self._changes:
            if self._holds(operation):
                self._deliver(operation, None)
        self.forget_expired()

    def on_removed(self) -> None:
        """This node was removed, which may be what a caller requested."""
        for operation in self._changes:
            removes = not (operation.adds or operation.moves)
            if removes and operation.node_id == self._core.id:
                self._deliver(operation, None)
        self.forget_expired()

    # ---------------------------------------------------------------- transfers

    def begin_transfer(self, operation: TransferOperation) -> None:
        """Make a node the leader, from another leader or from none."""
        target, membership = operation.target, self._core.membership
        if target not in membership.members:
            self._deliver(operation, TransferFailed(f"node {target} is not a member"))
        elif target not in membership.voters:
            reason = f"node {target} is a learner, and only voters lead"
            self._deliver(operation, TransferFailed(reason))
        elif self._core.leader == target:
            self._deliver(operation, None)
        else:
            self._transfers.append(operation)
            self._ask_transfer(operation)

    def _ask_transfer(self, operation: TransferOperation) -> None:
        """Ask the leader to hand over; without a leader, ask a voter to campaign."""
        target, leader = operation.target, self._core.leader
        operation.asked_at = self._now()
        operation.tries += 1
        if leader is None:
            target = self._whose_turn(target, operation.tries - ASKS_UNTIL_OTHERS)
        asked = leader if leader is not None else target
        if asked != self._core.id:
            self._send(TransferRequest(to=asked, sender=self._core.id, target=target))
            return
        error = self._hand_to(target)
        if error is not None:
            self._end_transfers(target, TransferFailed(str(error)))

    def _whose_turn(self, target: int, tries: int) -> int:
        """Return the voter to campaign: `target`, or every other time from `tries` 0 on, another.

        The target can't be elected while it is healing or its log is behind; another voter can, and
        then hands over. Every voter gets its turn within a few seconds, since an operator's next
        call starts from the beginning.
        """
        voters = self._core.membership.voters
        others = [v for v in voters if v > target] + [v for v in voters if v < target]
        if tries < 0 or tries % 2 or not others:
            return target
        return others[tries // 2 % len(others)]

    def _hand_to(self, target: int) -> RafthaError | None:
        """Do this node's part of a transfer; return the error that prevents it."""
        if self._core.is_leader:
            return self._try(lambda: self._core.transfer(target))
        if target == self._core.id:
            self._core.campaign()
        return None  # If this node has just lost its leadership, the requester asks again.

    def _transfer_timeout(self, target: int) -> RafthaError:
        if self._core.leader is not None:
            return RequestTimeout("leadership was not seen to move before the deadline")
        return TransferFailed(
            f"no leader is known, and node {target} was not elected before the deadline",
            hint="a majority of the voters must be up and reach each other",
        )

    def _change_timeout(self, operation: MembershipOperation) -> RafthaError:
        if operation.is_repeated:
            return RequestTimeout("the change of membership was not seen before the deadline")
        return Unavailable(
            "no leader was known before the deadline, so the change was not requested",
            hint="a majority of the voters must be up and reach each other",
        )

    def _end_transfers(self, target: int, result: TransferFailed | None) -> None:
        for operation in self._transfers:
            if operation.target == target and operation.waiter is not None:
                self._deliver(operation, result)
        self.forget_expired()

    def _try(self, action: Callable[[], None]) -> RafthaError | None:
        try:
            action()
        except RafthaError as error:
            return error
        return None

    # ---------------------------------------------------------------- membership

    def begin_change(self, operation: MembershipOperation) -> None:
        """Add, move or remove a node."""
        if self._holds(operation):
            self._deliver(operation, None)
            return
        self._changes.append(operation)
        self._ask(operation)

    def _holds(self, operation: MembershipOperation) -> bool:
        member = self.applied.members.get(operation.node_id)
        if operation.moves:
            return member is not None and _is_at(member, operation)
        if not operation.adds:
            return operation.node_id in self.applied.removed
        if member is None:
            return False
        if operation.address and operation.address != member.address:
            return False
        if operation.address and operation.region != member.region:
            return False
        return member.is_standby if operation.is_standby else member.is_voter

    def _ask(self, operation: MembershipOperation) -> None:
        leader = self._core.leader
        if leader is None or operation.waiter is None:
            return
        request = MembershipRequest(
            to=leader,
            sender=self._core.id,
            node_id=operation.node_id,
            adds=operation.adds,
            address=operation.address,
            region=operation.region,
            is_repeat=operation.is_repeated,
            is_standby=operation.is_standby,
            moves=operation.moves,
        )
        operation.asked_at, operation.is_repeated = self._now(), True
        if leader == self._core.id:
            self._on_membership_request(request)
        else:
            self._send(request)

    def _on_membership_request(self, request: MembershipRequest) -> None:
        try:
            self._change(request)
        except (NotLeader, Unavailable):
            # The requester will repeat it: to the next leader, or to this one once it has committed
            # an entry of its own term.
            return
        except MembershipChangePending as error:
            # The pending change may be the first try of this same request.
            if not request.is_repeat:
                self._refuse(request, error)
        except Rejected as error:
            self._refuse(request, error)

    def _refuse(self, request: MembershipRequest, error: Rejected) -> None:
        if request.sender == self._core.id:
            self._end_changes(request.node_id, error)
            return
        kind = type(error).__name__
        self._send(
            MembershipReply(
                to=request.sender,
                sender=self._core.id,
                node_id=request.node_id,
                kind=kind,
                reason=str(error),
            )
        )

    def _change(self, request: MembershipRequest) -> None:
        """Take the next step towards the requested membership, if it doesn't hold already."""
        core, node_id = self._core, request.node_id
        membership = core.membership
        member = membership.members.get(node_id)
        if not core.is_leader:
            raise NotLeader(core.leader)
        reason = self.why_not_now(request)
        if reason:
            raise MembershipChangePending(f"{reason}; try again later")
        if request.moves:
            if member is None or not _is_at(member, request):
                core.change_membership(_moved(membership, request))
            return
        unfit = self._why_unfit(node_id) if request.adds else ""
        if unfit:
            raise UpgradePending(f"node {node_id} can't join: {unfit}", (node_id,))
        if not request.adds:
            if node_id in membership.removed:
                return
            smaller = membership.without(node_id)
            if node_id in membership.voters:
                self._check_majority_left(smaller, node_id)
            if node_id == core.id:
                core.transfer(self._successor())
            else:
                core.change_membership(smaller)
        elif member is None or request.address not in ("", member.address):
            core.change_membership(self._with_learner(membership, request))
        elif request.address and request.region != member.region:
            raise InvalidRequest(
                f"node {node_id} is in region {member.region!r} already",
                hint="`raftha member move` and `move_replica` change a member's region",
            )
        elif request.is_standby is not member.is_standby:
            core.change_membership(membership.with_standby(node_id, is_standby=request.is_standby))
        elif not (member.is_voter or member.is_standby):
            if not request.is_repeat:
                core.catch_up_again(node_id)
            elif core.has_given_up(node_id):
                raise ReplicaTooSlow(
                    f"node {node_id} does not catch up; it stays a learner",
                    hint="add it again when there are fewer writes, or on a faster machine",
                )

    def _with_learner(self, membership: Membership, request: MembershipRequest) -> Membership:
        node_id, address = request.node_id, request.address
        if not address:
            raise InvalidRequest(f"node {node_id} is not a member")
        is_standby = request.is_standby
        return membership.with_learner(node_id, address, request.region, is_standby=is_standby)

    def _successor(self, candidates: Collection[int] | None = None) -> int:
        """Return the other voter, among `candidates` if given, that has the most of the log."""
        voters = [voter for voter in self._core.membership.voters if voter != self._core.id]
        voters = [v for v in voters if candidates is None or v in candidates]
        progress = self._core.progress
        active = [voter for voter in voters if self._counts(voter)]
        if not active:
            raise TransferFailed("no other voter is active, so none can take over")
        return max(active, key=lambda voter: progress[voter].match)

    def _counts(self, voter: int) -> bool:
        """Whether another voter is up, as far as this leader has lately heard, and whole."""
        progress = self._core.progress[voter]
        return (progress.is_active or progress.was_active) and not progress.is_healing

    def _check_majority_left(self, smaller: Membership, node_id: int) -> None:
        """Refuse to remove a voter that the cluster can't do without: it would end at once.

        A new leader has not heard all voters yet, so the request waits a while before that.
        """
        up = [v for v in smaller.voters if v == self._core.id or self._counts(v)]
        if len(up) >= smaller.quorum:
            self._short_since.pop(node_id, None)
            return
        if self._now() - self._short_since.setdefault(node_id, self._now()) < HEARD_S:
            raise Unavailable("not enough voters have been heard yet")
        down = ", ".join(str(voter) for voter in smaller.voters if voter not in up)
        raise InvalidRequest(
            f"without node {node_id} no majority would be up: node {down} is down",
            hint="remove the nodes that are down first, or start them",
        )

    def _end_changes(self, node_id: int, error: RafthaError) -> None:
        for operation in self._changes:
            if operation.node_id == node_id and operation.waiter is not None:
                self._deliver(operation, error)
        self.forget_expired()


def _is_at(member: Member, wanted: MembershipOperation | MembershipRequest) -> bool:
    """Whether a member has the wanted address and region."""
    return wanted.address in ("", member.address) and wanted.region in ("", member.region)


def _moved(membership: Membership, request: MembershipRequest) -> Membership:
    if request.address:
        membership = membership.with_address(request.node_id, request.address)
    if request.region:
        membership = membership.with_region(request.node_id, request.region)
    return membership
