"""Clients of the reference server: one that stays connected, and one call at a time."""

from raftha.client.client import Client
from raftha.client.resp import ReplyError

__all__ = ["Client", "ReplyError"]
