"""The threads around a node: its loop, its storage, its callers, its events."""
