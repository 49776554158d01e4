"""Clients; each runs in its own process, so that its CPU time is not added to the server's."""
