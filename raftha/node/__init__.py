"""One node: the loop around the core, what it keeps, and what it says to peers."""
