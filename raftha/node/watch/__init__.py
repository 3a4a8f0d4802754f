"""What a node watches: health, lag, failovers, space on disks, where the leader is."""
