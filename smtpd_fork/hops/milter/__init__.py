"""The milter protocol, the MTA's side: frames, a conversation, what a milter changes."""
