"""Dovecot's authentication protocol, the client's side: lines, a conversation, a connection."""
