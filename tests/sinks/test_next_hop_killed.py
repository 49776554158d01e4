"""A daemon that relays, killed at random: the next hop has every accepted message."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.dovecot import dovecot
from support.handlers import Collect
from support.killing import body, deliver_and_kill

from smtpd_fork import ThreadedServer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.timeout(120)
def test_the_hop_has_every_accepted_message(tmp_path: Path) -> None:
    behind = Collect()
    with ThreadedServer(behind, listen="127.0.0.1:0") as server:
        names = deliver_and_kill(
            *("--handler", "accept:example.com", "--handler", f"relay:127.0.0.1:{server.port}"),
            cwd=tmp_path,
        )
    stored = [content.partition(b"Subject: ")[2] for content in behind.messages]
    for name in names:
        expected = body(name).removeprefix(b"Subject: ")
        # Each kill may occur between the hop's 250 and the reply to the client.
        assert 1 <= stored.count(expected) <= 3


@pytest.mark.peers
@pytest.mark.timeout(120)
def test_dovecot_has_every_accepted_message(tmp_path: Path) -> None:
    with dovecot() as peer:
        names = deliver_and_kill("--handler", f"lmtp:{peer.unix}", cwd=tmp_path)
        stored = [each.partition(b"Subject: ")[2] for each in peer.messages("b@example.com")]
    assert {name for name in names if body(name).removeprefix(b"Subject: ") in stored} == set(names)
