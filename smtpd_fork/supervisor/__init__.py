"""The supervisor of ``--processes``: starts, monitors and replaces the serving processes."""
