"""raftha's version, as a literal: packaging reads it without importing anything."""

VERSION = "0.1.0"
