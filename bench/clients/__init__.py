"""Clients, each a process of its own: what they cost is not the server's."""
