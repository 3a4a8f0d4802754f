"""Transcripts of the core: commands to a few nodes, and the effects, to be read as the design.

Theory of operation. `testdata/*.txt` are conversations with a cluster of real cores in one thread,
without I/O, time or chance. A test replays each and compares; `pytest --rewrite` records what
happens now. Commit a rewrite only if every line of it is what Raft demands: the diff of a
transcript is the review of a change to the protocol. (The idea is that of etcd's raft library.)

A transcript begins with a comment: what it shows, and where Raft says so. Then come blocks:

    # Comments and blank lines stay as they are.
    propose 1 x
    deliver 1->2
    ----
    1 proposes 2/1 x
    1 write entries=[2/1 x]
    1->2 Append term=1 prev=1/1 commit=1 entries=[2/1 x]
      2 write entries=[2/1 x]

Some commands, a line of dashes, what the commands put out, and a blank line. `4/2 x` is the entry
at index 4 of term 2 that carries x. A message is shown when it is delivered, and what it leads to
is indented below it; `messages` shows those on their way. A node's commit line says how far it has
applied, too, if that isn't the same. A membership is an entry like 5/2 members 1 2 (3) -4: node 3
is a learner, node 4 was removed.

Disks are explicit. A node that writes has finished at once, before the next command or message,
unless its writes are held: then the write waits for `write`, and a crash loses it.

The commands; NODE is an id, NODES some ids:

    add-nodes N [election=10] [heartbeat=2] [random=0] [log=1,1,2] [window=BYTES]
        [append=BYTES] [in-flight=MESSAGES] [in-flight-bytes=BYTES] [catch-up-rounds=5]
                            a new cluster of nodes 1 to N, whose logs hold entries of these terms.
                            Times are in ticks. `random` is the chance in every timeout: one value,
                            or one a node: 0,3,6. `window` is how much of what was applied is kept
                            in memory
    join NODE               start one more node, with an empty disk, unknown to the others add NODE
    NEW            have a leader add a node, as a learner remove NODE OLD         have a leader
    remove a node catch-up-again NODE LEARNER
                            have a leader give a learner that was too slow another chance
    dismiss NODE            tell a node that it was removed, as the others do when it dials disk
    NODE log=1,1,2 [term=T] [vote=V] [commit=C]
                            give the node this disk, and restart it
    tick NODES [count=1]    let time pass, on these nodes only
    campaign NODE           let as much time pass on this node as it takes to ask for (pre-)votes
    elect NODE [NODES]      have it elected (by these), and known by all: a shorthand for beginnings
    run TICKS [NODES]       let time pass on all nodes, or on these, delivering everything; messages
                            aren't shown
    deliver [FROM->TO] [TYPE] [first=N] [drop] [dup] [reverse]
                            deliver what is on its way now, not what is sent because of it. FROM or
                            TO may be left out. `first` takes only the first N, `drop` loses them,
                            `dup` leaves a copy on its way, `reverse` begins with the last one
    stabilize [NODES]       deliver all there is, to all or among these, until there is no more
    messages [FROM->TO]     show what is on its way
    propose NODE TEXT [for=PEER]
                            append an entry; with `for`, PEER is told at once when it is committed
    read-index NODE ID      ask for a read index
    transfer NODE TARGET    hand leadership over
    hold-writes NODES, release-writes NODES
                            leave writes pending from now on; complete them at once again
    write NODE              complete the pending write
    hold-reads NODES        leave a leader's reads of its log on disk pending from now on
    read NODE               complete the oldest pending read
    crash NODE              stop; what is not written is lost
    restart NODE            start from what is on disk
    lose-log NODE INDEX     crash, and start without a log, with the state as of INDEX
    compact NODE INDEX      free the log up to INDEX, which must be applied
    offer-snapshot NODE PEER
                            send an offer of a snapshot of what NODE has compacted
    install NODE FROM       have NODE start with a snapshot of what FROM has compacted
    snapshot-sent NODE PEER INDEX, snapshot-failed NODE PEER
                            tell NODE the fate of the snapshot that it asked for
    cut NODE [NODE], heal NODE [NODE]
                            lose all messages between the two (or between it and all others),
                            unnoticed; don't any more
    disconnect NODE [NODE], connect NODE [NODE]
                            the same, and the nodes notice
    raft-log NODE, applied NODE, status [NODES]
                            show the log; what the state machine was given; where all stand

`quiet` at the end of any command leaves out its messages, and shows only what nodes did.
"""
