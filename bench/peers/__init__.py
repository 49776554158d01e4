"""Small servers that are measured beside the daemon."""
