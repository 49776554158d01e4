"""The dialogue without sockets, loop and clock: any packets give the same replies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.smtp import AuthResult
from support.cuts import cut
from support.handlers import Keep, KeepSlowly
from support.offline import Offline, Outcome

from smtpd_fork.dialogue import BareNewline, Limits, Shared
from smtpd_fork.dialogue.trusted_commands import NAMES
from smtpd_fork.gate import TrustedHosts
from smtpd_fork.smtp import SMTP

CORPUS = [path.read_bytes() for path in Path(__file__).parents[1].glob("fuzz/corpus/*.smtp")]

CUTS = 16
"""Number of single cuts of a stream, besides single bytes."""

AUTH = (
    b"EHLO x\r\nAUTH PLAIN\r\nAHVzZXIAcGFzcw==\r\nAUTH PLAIN AHVzZXIAcGFzcw==\r\n",
    b"EHLO x\r\nAUTH LOGIN\r\ndXNlcg==\r\ncGFzcw==\r\nMAIL FROM:<a@b.example>\r\n",
    b"EHLO x\r\nAUTH LOGIN\r\n*\r\nAUTH PLAIN\r\n\r\nAUTH LOGIN =\r\nd3Jvbmc=\r\nQUIT\r\n",
)


def _check(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    return AuthResult(success=data.password == b"pass", handled=False, auth_data=data)


def result(shared: Shared, handler: Keep, packets: list[bytes]) -> tuple[Outcome, list[Any]]:
    handler.got = []
    offline = Offline(shared)
    for packet in packets:
        offline.feed(packet)
    return offline.outcome, handler.got


@pytest.mark.parametrize("mode", BareNewline)
@pytest.mark.parametrize("lmtp", [False, True], ids=["SMTP", "LMTP"])
@pytest.mark.parametrize("kind", [Keep, KeepSlowly])
def test_every_stream_has_one_result_however_it_is_cut(
    mode: BareNewline, lmtp: bool, kind: type[Keep]
) -> None:
    handler = kind()
    shared = Shared(
        SMTP,
        handler,
        hostname="mx.example.com",
        data_size_limit=4000,
        enable_SMTPUTF8=True,
        enhanced=True,
        bare=mode,
        lmtp=lmtp,
        limits=Limits(errors=10),
        authenticator=_check,
        auth_require_tls=False,
    )
    shared.trust(dict.fromkeys(NAMES, TrustedHosts.of("xclient_trust", ["192.0.2.1"])))
    accepted = 0
    for stream in (*CORPUS, *AUTH):
        whole = result(shared, handler, [stream])
        accepted += len(whole[1])
        step = max(1, len(stream) // CUTS)
        ways = [cut(stream, [place]) for place in range(1, len(stream), step)]
        for packets in (cut(stream, range(len(stream))), *ways):
            assert result(shared, handler, packets) == whole, packets
    assert accepted > 40 or lmtp  # otherwise the streams contain few messages


def test_an_ended_dialogue_processes_no_input() -> None:
    offline = Offline(Shared(SMTP, Keep(), hostname="mx.example.com"))
    offline.feed(b"QUIT\r\nNOOP\r\n")
    offline.feed(b"NOOP\r\n")
    assert offline.outcome.sent.count(b"\r\n") == 2
    assert offline.outcome.over
