"""A node's watchers: health, lag, failovers, disk space, leader placement."""
