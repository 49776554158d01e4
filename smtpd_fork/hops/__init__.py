"""Clients of other servers: SMTP, LMTP, milter, policy delegation, Dovecot, HTTP and rspamd."""
