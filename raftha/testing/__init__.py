"""Real node processes for tests: `LocalCluster`."""

from raftha.testing.local_cluster import LocalCluster

__all__ = ["LocalCluster"]
