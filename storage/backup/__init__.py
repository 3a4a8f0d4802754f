"""Backups outside the cluster: destinations, the repository in them, and its encrypted frames."""
