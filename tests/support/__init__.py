"""What the tests share: a raw client, the daemon as a process, real peers, certificates."""
