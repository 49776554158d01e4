"""Benchmarks of the daemon and of other servers on one machine: ``python -m bench --help``."""
