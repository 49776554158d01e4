"""qpsmtpd-forkserver and smtpd-fork behave the same with the same options.

Each test of test_qpsmtpd_*.py makes an observation of both programs at the same time. Every
difference has to be in INTENDED, with both values, and in the table of docs/qpsmtpd.md, with the
reason. A test fails for a difference that is not listed, and for a listed one that does not occur.
"""

from __future__ import annotations

import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from support.peers import needs_ipv6, needs_root, peer
from support.qpsmtpd import PLUGINS, Bench, make_qpsmtpd, make_smtpd_fork

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Facts: TypeAlias = dict[str, Any]
Observation: TypeAlias = "Callable[[Bench], Facts]"

USAGE = (0, "stdout")
"""qpsmtpd-forkserver prints its usage and exits with 0 after any error."""

COMPLAINT = (64, "stderr")
"""smtpd-fork prints the error in one line, and exits with EX_USAGE."""

INTENDED: dict[str, tuple[Any, Any]] = {
    # -- options
    "bad-value": ({USAGE}, {COMPLAINT}),
    "port-out-of-range": ("serves another port", COMPLAINT),
    "limit-connections-0": ("greets nobody", COMPLAINT),
    "max-from-ip-negative": ("greets nobody", COMPLAINT),
    "same-address-twice": (False, True),
    "ipv6-without-brackets": (USAGE, "serves"),
    "relative-pid-file": (USAGE, "serves"),
    "abbreviated-options": ("serves", COMPLAINT),
    "extra-arguments": ("serves", COMPLAINT),
    "no-rdns": ("serves", COMPLAINT),
    "exit-status-of-a-failed-start": ([98, 99], [71, 71]),
    # -- limits
    "default-limit-connections": ("waits", 2),
    "default-max-from-ip": (4, 2),
    "limit-connections-over-several-sockets": (2, 1),
    "max-from-ip-on-the-default-address": ([2, 2], [4, 4]),
    "max-from-ip-takes-a-plugin": (2, 4),
    "max-from-ip-reply": (451, 421),
    "early-talker-reply": (550, 554),
    # -- the process
    "process-per-session": (1, 0),
    "root-without-user": ((255, "smtpd"), "serves"),
    "user-by-number": (False, True),
    "user-root": (True, False),
    "detached-directory": ("as before", "/"),
    "detached-session-leader": (True, False),
    "pid-file-of-another-process": (False, True),
    "pid-file-in-a-foreign-directory": ("left", "removed"),
    "interrupt-after-a-session": ((-signal.SIGINT, "left"), (0, "removed")),
    "reply-at-stop": (0, 421),
    # -- the dialogue
    "version-in-banner": (True, False),
    "ehlo-size": (False, True),
    "hello-again": (5, 2),
    "starttls-without-certificate": (5, 4),
    "mail-without-address": (2, 5),
    "mail-without-brackets": (5, 2),
    "mail-within-a-transaction": (2, 5),
    "mail-with-an-unknown-parameter": (2, 5),
    "mail-with-a-size-too-large": (2, 5),
    "rcpt-with-an-unknown-parameter": (2, 5),
    "rcpt-of-a-foreign-domain": (5, 2),
    "vrfy-without-argument": (2, 5),
    "rset-with-argument": (2, 5),
    "data-with-argument": (3, 5),
    "long-command": (2, 5),
    "many-unknown-commands": ([500, 500], [421, 0]),
    "bare-lf-ends-data": ([250, 500], [250, 250]),
    "bare-lf-behind-final-dot": (421, 250),
    # -- the message
    "authentication-results": (True, False),
    "received-names-id-and-recipient": (False, True),
    "message-without-header": ("lost", "stored"),
}  # fmt: skip

observed: set[str] = set()
"""The differences that at least one test observes."""


def both(
    *differences: str, plugins: Sequence[str] = PLUGINS, root: bool = False, ipv6: bool = False
) -> Callable[[Observation], Callable[[], None]]:
    """Make a test of an observation, whose values are the same for both except for *differences*.

    :param plugins: of qpsmtpd
    :param root: whether the test needs root
    :param ipv6: whether the test needs IPv6 on loopback
    """
    observed.update(differences)

    def wrap(observe: Observation) -> Callable[[], None]:
        def test() -> None:
            program = peer("qpsmtpd-forkserver")
            if root:
                needs_root()
            if ipv6:
                needs_ipv6()
            # Not tmp_path, which only its owner can enter.
            with tempfile.TemporaryDirectory(prefix="qpsmtpd-") as name:
                top = Path(name)
                top.chmod(0o755)
                benches = [
                    make_qpsmtpd(program, top / "qpsmtpd", plugins),
                    make_smtpd_fork(top / "smtpd-fork"),
                ]
                with ThreadPoolExecutor() as pool:
                    theirs, ours = pool.map(observe, benches)
            assert theirs.keys() == ours.keys()
            differing = {k: (theirs[k], ours[k]) for k in theirs if theirs[k] != ours[k]}
            assert differing == {key: INTENDED[key] for key in differences}

        test.__name__ = observe.__name__
        test.__doc__ = observe.__doc__
        return test

    return wrap
