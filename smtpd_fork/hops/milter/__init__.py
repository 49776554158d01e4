"""The MTA's side of the milter protocol: frames, conversations, connections, changes."""
