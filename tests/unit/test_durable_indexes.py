"""Which nodes have an entry on disk, as leaders know and followers learn."""

from __future__ import annotations

from raftha.core import Append, DurableIndexesReply, DurableIndexesRequest, Heartbeat
from raftha.core.durable_indexes import DurableIndexes, encode_behind
from raftha.entry import EntryKind
from raftha.node.acknowledgements import holders
from tests.support.core import Net, acknowledge, become_leader, chain, core, only, settle, step


def test_durable_indexes_only_grow() -> None:
    durable_indexes = DurableIndexes()
    durable_indexes.learn(10, (1, 0, 2, 3, 3, 10))
    assert sorted(durable_indexes.holders(7)) == [1, 2]
    assert sorted(durable_indexes.holders(8)) == [1]
    durable_indexes.learn(9, (1, 5, 2, 0, 3, 8))
    assert sorted(durable_indexes.holders(9)) == [1, 2]
    assert sorted(durable_indexes.holders(1)) == [1, 2, 3]


def test_uncommitted_entries_count_for_nothing() -> None:
    behind = encode_behind(5, {1: 9, 2: 5, 3: 2})
    assert behind == (1, 0, 2, 0, 3, 3)
    durable_indexes = DurableIndexes()
    durable_indexes.learn(5, behind)
    assert list(durable_indexes.holders(6)) == []


def test_followers_learn_with_a_commit_which_replicas_have_the_entry() -> None:
    net = Net(core(1), core(2), core(3))
    leader = net.elect(1)
    net.cut_off = {3}
    leader.propose(b"x", 1, 0)
    net.run()
    index = leader.log.last_index
    assert holders(leader, index) == (1, 2)
    follower = net.cores[2]
    for _ in range(leader.config.heartbeat_ticks):
        leader.tick()
    net.run()
    assert follower.log.applied == index
    assert holders(follower, index) == (1, 2)
    net.cut_off = set()
    for _ in range(2 * leader.config.heartbeat_ticks):
        leader.tick()
        net.run()
    assert all(holders(raft, index) == (1, 2, 3) for raft in net.cores.values())


def test_learned_indexes_outlive_their_leader() -> None:
    net = Net(core(1), core(2), core(3))
    first = net.elect(1)
    first.propose(b"x", 1, 0)
    net.run()
    index = first.log.last_index
    net.cut_off = {3}
    first.transfer(2)
    net.run()
    assert net.cores[2].is_leader
    assert holders(first, index) == (1, 2, 3)
    assert set(holders(net.cores[2], index)) >= {1, 2}


def test_the_watcher_of_an_entry_is_told_of_each_disk_until_all_have_it() -> None:
    leader = core(1)
    become_leader(leader)
    index = leader.log.last_index
    acknowledge(leader, 2)
    assert leader.log.commit == index
    (reply,) = only(
        DurableIndexesReply, step(leader, DurableIndexesRequest(1, 2, leader.term, index))
    )
    assert (reply.to, reply.commit, reply.behind) == (2, index, (1, 0, 2, 0, 3, index))
    # Changes of other entries don't concern the watcher of this entry.
    leader.propose(b"x", 1, 0)
    settle(leader)
    assert only(DurableIndexesReply, acknowledge(leader, 2)) == []
    (reply,) = only(DurableIndexesReply, acknowledge(leader, 3, index))
    assert (reply.to, reply.behind[-2:]) == (2, (3, leader.log.commit - index))
    assert only(DurableIndexesReply, acknowledge(leader, 3)) == []


def test_a_follower_asks_the_leader_it_knows_and_a_leader_asks_no_node() -> None:
    follower = core(1)
    follower.watch_durable_indexes(1)
    assert settle(follower) == []
    step(follower, Append(1, 2, 1, 0, 0, 0, 0, tuple(chain(1))))
    follower.watch_durable_indexes(1)
    assert settle(follower) == [DurableIndexesRequest(2, 1, 1, 1)]
    leader = core(1)
    become_leader(leader)
    leader.watch_durable_indexes(1)
    assert settle(leader) == []


def test_heartbeats_say_how_far_disks_are_as_of_what_they_commit() -> None:
    leader = core(1)
    become_leader(leader)
    acknowledge(leader, 2)
    for _ in range(leader.config.heartbeat_ticks):
        leader.tick()
    beats = {beat.to: beat for beat in only(Heartbeat, settle(leader))}
    assert beats[2].behind == (1, 0, 2, 0, 3, 1)
    assert beats[3].behind == (1, 0, 2, 0, 3, 0)
    assert beats[3].commit == 0


def test_followers_say_how_far_their_state_is() -> None:
    net = Net(core(1), core(2), core(3))
    leader = net.elect(1)
    leader.propose(b"x", 3, 0)
    net.run()
    for _ in range(2 * leader.config.heartbeat_ticks):
        leader.tick()
        net.run()
    assert leader.log.window[-1].kind == EntryKind.BATCH
    for progress in leader.progress.values():
        assert (progress.applied, progress.applied_sequence) == (leader.log.last_index, 3)
