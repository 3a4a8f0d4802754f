"""The network between members: connections, frames, TLS and certificates."""
