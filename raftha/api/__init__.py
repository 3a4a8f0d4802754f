"""What both managers share: each call, modes of acknowledgement, a node that doesn't run."""
