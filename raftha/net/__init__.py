"""Between members: connections, frames, TLS and certificates."""
