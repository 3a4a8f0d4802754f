"""Which member does what for backups, and when. `backups.py` is what the node knows of it."""
