"""Real node processes for tests: `LocalCluster`."""

from raftha.errors import LocalClusterError
from raftha.testing.local_cluster import LocalCluster

__all__ = ["LocalCluster", "LocalClusterError"]
