"""A daemon with copies, killed at random: each accepted message is in every required sink."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from support.killing import deliver_and_kill

if TYPE_CHECKING:
    from pathlib import Path

CONFIG = """
[[handler]]
use = "maildir"
path = "main"

[[handler]]
use = "maildir"
path = "copy"
copy = true

[[handler]]
use = "pipe"
command = "{script}"
copy = "best-effort"
"""


def subjects(maildir: Path) -> Counter[str]:
    lines = [
        next(line for line in path.read_text().splitlines() if line.startswith("Subject: "))
        for path in (maildir / "new").iterdir()
    ]
    return Counter(line.removeprefix("Subject: ") for line in lines)


def test_each_accepted_message_is_in_every_required_sink(tmp_path: Path) -> None:
    script = tmp_path / "fails-often"
    script.write_text(
        '#!/bin/sh\ncat >/dev/null\ncase "$QUEUE_ID" in *[13579bdf]) exit 75;; esac\n'
    )
    script.chmod(0o700)
    (tmp_path / "c.toml").write_text(CONFIG.format(script=script))
    names = deliver_and_kill("--config", "c.toml", cwd=tmp_path)
    main, copy = subjects(tmp_path / "main"), subjects(tmp_path / "copy")
    assert set(main) == set(copy) == set(names)
    # A message is duplicated only if the daemon was killed before its reply: one per client.
    for each in (main, copy):
        assert sum(each.values()) <= len(names) + 2 * 4
