"""What both managers share: each call, acknowledgement modes, and a node that doesn't run."""
