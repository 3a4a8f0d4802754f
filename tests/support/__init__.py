"""Helpers that tests of several folders share; it has no tests."""
