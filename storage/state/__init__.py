"""The state machine: commands, what they change, checkpoints in LMDB."""
