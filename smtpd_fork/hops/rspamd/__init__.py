"""rspamd's HTTP protocol: what it is asked, what it answers, and which server is asked."""
