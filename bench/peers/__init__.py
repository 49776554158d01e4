"""Small servers that are compared with the daemon, or that it delivers to."""
