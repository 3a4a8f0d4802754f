"""The version of raftha, as a literal, which packaging reads without an import."""

VERSION = "0.1.0"

PROTOCOL_OLDEST = 6
PROTOCOL_VERSION = 8
"""The range of protocols that this version speaks: messages, kinds of entries, built-in commands.

`docs/internals/versions.md` says what a change of the protocol needs.
"""
