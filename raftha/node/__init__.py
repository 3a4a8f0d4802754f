"""One node: the loop around the core, its operations, and its messages to peers."""
