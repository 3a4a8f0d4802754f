"""The client of the reference server: one connection, shared by any number of tasks."""

from raftha.client.client import Client
from raftha.client.resp import ReplyError

__all__ = ["Client", "ReplyError"]
