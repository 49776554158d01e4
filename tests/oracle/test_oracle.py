"""aiosmtpd's own tests, run with smtpd_fork's session: programs for aiosmtpd work with it as well.

Intended differences are in DIVERGENCES, with the reason. Any other failure is a bug; an entry whose
test passes has to be removed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import aiosmtpd
import pytest
from support.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

RUNS = (
    ("test_smtp",),
    ("test_server",),
    # test_smtpsmuggling is last: if it fails, it leaves its patches in smtplib.
    (
        *("test_starttls", "test_lmtp", "test_smtps", "test_handlers", "test_proxyprotocol"),
        "test_smtpsmuggling",
    ),
)
"""Their test modules, by process; the processes run concurrently, because they mostly wait."""

NOT_OURS = tuple(
    f"test_server.py::TestController::test_{name}"
    for name in ("socket_error_", "ready_timeout", "factory_timeout")
)
"""These tests bind a port twice, which can hang with the stock session as well, or
measure half a second in their Controller, which a busy machine exceeds. They create no session."""

FEWEST_TESTS = 500
HANG_SECONDS = 5
"""Timeout; one of their tests hangs (see DIVERGENCES)."""
PATIENCE = 170

PATHS = (
    "MAIL and RCPT take what RFC 5321 4.1.2 knows, with or without brackets: no comments, no "
    "quoting of parts of a local part, no address of IPv6 without its tag, no local part alone"
)
ERRORS = "what a handler raises is 451, the client may try again, and its text stays in the log"
MORE_LINES = "EHLO offers, and HELP lists, extensions that aiosmtpd does not have"
WRITER = "there is no StreamWriter `_writer`, which is private: the session is a protocol"
LOGS = "the log is 'smtpd_fork.session' with lines of its own, and has no credentials in it"
BATCH = "the replies to what came in one packet go out in one write, and the test counts writes"
PRIVATE = "it patches or reads a private name of aiosmtpd's module or class"

DIVERGENCES: dict[str, str] = {
    # paths; the numbers are of the examples that are none
    r"test_smtp::TestSMTP::test_(mail|rcpt)_valid_address\[(1[4-8]|2[89]|3[01]|39|42)\]": PATHS,
    # errors of handlers
    r"test_smtp::TestSMTPWithController::test_unexpected_errors_unhandled": ERRORS,
    r"test_smtp::TestSMTPWithController::test_exception_handler_(exception|undescribable)": ERRORS,
    r"test_smtp::TestSMTPWithController::test_exception_handler_multiple_connections_lost": (
        "a ConnectionError that a handler raises is of its own connections, and is 451 as well"
    ),
    # extensions
    r"test_smtp::TestSMTP::test_(ehlo|help|help_bad_arg)": MORE_LINES,
    r"test_smtp::TestAuthMechanisms::test_ehlo": MORE_LINES,
    r"test_smtp::TestRequiredAuthentication::test_help_authenticated": MORE_LINES,
    r"test_starttls::TestStartTLS::test_help_after_starttls": MORE_LINES,
    r"test_lmtp::test_(lhlo|help)": MORE_LINES,
    # line ends, encodings and lengths
    r"test_smtp::TestSMTPWithController::test_bad_encodings": (
        "a command with invalid UTF-8 is refused (RFC 6531), not handed on with surrogates in it"
    ),
    # AUTH
    r"test_smtp::TestAuthMechanisms::test_login(2_good_credentials|3_.*)": (
        "the challenges of LOGIN are those of all other servers: strict clients wait for them"
    ),
    r"test_smtp::TestSMTPAuth::test_auth_loginteract_warning": (
        "challenge_auth's log_client_response is not honoured, so there is nothing to warn of"
    ),
    r"test_starttls::TestRequireTLSAUTH::test_auth_tls": (
        "AUTH is there only where something can check credentials"
    ),
    # the end of a session
    r"test_smtp::TestSleepingHandler::test_close_after_helo": (
        "the end of input does not cancel a handler: what was complete is answered"
    ),
    r"test_smtp::TestTimeout::test_timeout": "a client that is cut for its silence is told so: 421",
    r"test_smtp::TestLimits::test_limit_bogus": (
        "so many commands that are none end with 421, not with 502, and at a limit of ours"
    ),
    r"test_starttls::TestTLSEnding::test_tls_handshake_failing": (
        "a handshake that fails is the client's doing, and nobody is left to be told a status"
    ),
    # private attributes
    r"test_smtp::TestProtocol::test_(empty_email|honors_mail_delimiters)": BATCH,
    r"test_smtp::TestClientCrash::test_connection_reset_.*": WRITER,
    r"test_smtp::TestClientCrash::test_close_in_.*": WRITER,
    r"test_smtp::TestClientCrash::test_sockclose_after_helo": WRITER,
    r"test_smtp::TestAuthMechanisms::test_plain1_goodcreds_sanitized_log": LOGS,
    r"test_smtp::TestAuthArgs::test_(warn_authreqnotls|log_authmechanisms)": LOGS,
    r"test_starttls::TestTLSContext::test_certreq_warn": LOGS,
    r"test_proxyprotocol::TestSMTPInit::test_lt_3": LOGS,
    # messages
    r"test_handlers::TestHooks::test_hook_NoHooks": (
        "a message that no handler takes is not accepted: it would be lost"
    ),
    r"test_smtp::TestSMTPWithController::test_long_line_leak": PRIVATE,
    r"test_smtp::TestLimits::test_different_limits_custom_default": PRIVATE,
}
"""Pattern of the names of their tests that must fail, and the reason."""

pytestmark = [pytest.mark.suites, pytest.mark.timeout(PATIENCE + 5)]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """Errors of their tests, by name; an empty text means that a test passed."""
    with ThreadPoolExecutor() as pool:
        folders = [tmp_path_factory.mktemp("oracle") for _ in RUNS]
        reports = list(pool.map(_run, RUNS, folders))
    reported = {name: wrong for report in reports for name, wrong in report.items()}
    assert len(reported) >= FEWEST_TESTS
    return {name.replace(".py::", "::"): wrong for name, wrong in reported.items()}


def _run(modules: Sequence[str], folder: Path) -> dict[str, str]:
    """Run their tests in *folder*, because in this directory they would find our conftest.py."""
    report = folder / "report.json"
    here = Path(__file__).parent
    options = (
        "-q --tb=short -p plugin -p no:cacheprovider -p no:asyncio "
        f"-c {os.devnull} --timeout={HANG_SECONDS}"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", *options.split()),
            f"--rootdir={Path(aiosmtpd.__path__[0]) / 'tests'}",
            *(f"--deselect={test}" for test in NOT_OURS),
            *("--pyargs", *(f"aiosmtpd.tests.{module}" for module in modules)),
        ],
        cwd=folder,
        env=environment
        | {
            "ORACLE_PORT": str(free_port()),
            "ORACLE_REPORT": str(report),
            "PYTHONPATH": os.pathsep.join([str(here), str(here.parents[1])]),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert report.exists(), run.stdout
    return json.loads(report.read_text())  # type: ignore[no-any-return]  # the plugin wrote it


def _known(name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in DIVERGENCES)


def test_only_intended_differences_fail_in_aiosmtpds_tests(
    outcomes: Mapping[str, str],
) -> None:
    unmeant = {name: wrong for name, wrong in outcomes.items() if wrong and not _known(name)}
    assert not unmeant, "\n".join(f"{name}\n{wrong}" for name, wrong in unmeant.items())


@pytest.mark.parametrize("pattern", DIVERGENCES)
def test_every_intended_difference_still_fails(pattern: str, outcomes: Mapping[str, str]) -> None:
    covered = {name: wrong for name, wrong in outcomes.items() if re.fullmatch(pattern, name)}
    assert covered, "aiosmtpd no longer has such a test: remove the entry"
    passing = [name for name, wrong in covered.items() if not wrong]
    assert not passing, "they pass: remove them"
