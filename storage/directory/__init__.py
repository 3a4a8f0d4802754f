"""A node's data directory as a whole: identity, replay, snapshots, healing."""
