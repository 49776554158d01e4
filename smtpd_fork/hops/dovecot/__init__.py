"""The client's side of Dovecot's authentication protocol: conversation, connection, service."""
