"""Code that tests share: clients, handlers, the daemon as a process, real peers, certificates."""

import pytest

# Assertions in helpers show the compared values on failure, as those in tests do.
pytest.register_assert_rewrite(
    "support.auth",
    "support.daemon",
    "support.dialogue",
    "support.differences",
    "support.place",
    "support.replies",
)
