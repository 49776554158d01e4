"""The next hop: connections to other mail servers, by SMTP and LMTP."""
