from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.auth import HASH

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def users(tmp_path: Path) -> str:
    """A file of users."""
    path = tmp_path / "users"
    path.write_text(f"bob:{HASH}\ncarol@example.com:{HASH}\n")
    path.chmod(0o600)
    return str(path)
