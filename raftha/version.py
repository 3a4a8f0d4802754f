"""The version of raftha, as a literal, which packaging reads without an import."""

VERSION = "0.1.0"
