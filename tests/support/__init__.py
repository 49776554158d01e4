"""What the tests share: clients, handlers, the daemon as a process, real peers, certificates."""

import pytest

# Helpers that judge: where one fails, it is to show what it saw, as a test does.
pytest.register_assert_rewrite(
    "support.auth",
    "support.daemon",
    "support.dialogue",
    "support.differences",
    "support.place",
    "support.replies",
)
