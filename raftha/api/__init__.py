"""The two faces' calls: modes of acknowledgement, and `ha.replication`."""
