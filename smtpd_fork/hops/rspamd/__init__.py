"""rspamd's HTTP protocol: requests, answers, and the choice of a server."""
