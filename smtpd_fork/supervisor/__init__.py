"""The supervisor of ``--processes``: starts, asks, watches and replaces processes that serve."""
