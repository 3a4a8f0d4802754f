"""The threads around a node: event loop, storage, callers, events."""
