"""Recovery of the live cluster to an earlier moment: each node's part, and the leader's."""
