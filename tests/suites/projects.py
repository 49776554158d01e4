"""The projects whose tests are run, the commands, and the intended differences with our session."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).parent

PYTEST = ("pytest", "-q", "--timeout=20", *("-p", "no:cacheprovider", "-p", "pytest_timeout"))
ASYNCIO = ("-p", "pytest_asyncio.plugin")

SPEAK_TO_A_SERVER = (
    *("api", "asyncio", "commands", "connect", "main", "sendmail", "sync", "timeouts", "tls"),
)
"""Modules of aiosmtplib's tests that use a server; the others test functions."""

AIOSMTPD = ("--pyargs", "aiosmtpd.tests.test_main", "aiosmtpd.tests.test_misc")

HOOKS = "their session overrides `_call_handler_hook`, which is private, to see all commands"
CLIENTS = "they replace `_handle_client`, which is private: the session is a protocol, and has none"
WRITER = "they write to `_writer` or `_reader`, which are private: the session is a protocol"


@dataclass(frozen=True)
class Project:
    """The tests of another project.

    :ivar name: its name on PyPI
    :ivar command: of ``python -m``, in the directory of its sources, if it has one
    :ivar report: the options of the command for a JUnit report, with ``{}`` for the file
    :ivar together: whether both runs may be concurrent: no port is fixed
    :ivar divergences: patterns of the names of tests that fail with our session and pass with
        aiosmtpd's, and the reason
    """

    name: str
    command: tuple[str, ...]
    report: tuple[str, ...] = ("--junitxml={}",)
    together: bool = True
    divergences: dict[str, str] = field(default_factory=dict)


PROJECTS = (
    Project(
        "aiosmtpd",  # Tests with a fixed port; test_oracle.py runs the others in every `make test`.
        (*PYTEST, "-p", "pytest_mock", "-c", os.devnull, *AIOSMTPD),
        together=False,
    ),
    Project(
        "mailrise",  # Its tests start no server; use_mailrise.py does.
        (
            # --confcutdir: without the fixtures of this project.
            *(*PYTEST, *ASYNCIO, "-o", "addopts=", "--confcutdir", str(HERE)),
            *("tests", str(HERE / "use_mailrise.py")),
        ),
    ),
    Project(
        "mailman",  # Its LMTP runner, in a separate process.
        ("nose2", "--config", "unittest.cfg", "-P", "test_lmtp"),
        report=("--plugin", "nose2.plugins.junitxml", "--junit-xml", "--junit-xml-path", "{}"),
        together=False,
    ),
    Project(
        "pytest-localserver",
        (*PYTEST, "-p", "pytest_localserver.plugin", "tests/test_smtp.py"),
    ),
    Project(
        "smtpdfix",
        (*PYTEST, *ASYNCIO, "-p", "smtpdfix.fixture", "-o", "addopts=", "tests"),
        divergences={
            r"test_controller::test_custom_ssl_context": WRITER,
            r"test_fixture::test_(AUTH|login|send_message_log)(?!.*_no_(tls|encryption)).*": WRITER,
            r"test_smtp::test_starttls_(CancelledError|Exception)": (
                "they replace ssl.SSLContext by a mock, which isinstance() does not take"
            ),
        },
    ),
    Project(
        "aiosmtplib",
        (
            *(*PYTEST, *ASYNCIO, "-p", "no:warnings"),
            *(f"tests/test_{name}.py" for name in SPEAK_TO_A_SERVER),
        ),
        divergences={
            r"test_connect::test_context_manager_exception_quits": HOOKS,
            r"test_sendmail::test_rset_after_sendmail_error_response_to_(mail|rcpt|data)": HOOKS,
            r"test_sendmail::test_send_message_with_(cc|bcc|cc_and_bcc)_recipients": HOOKS,
            r"test_sendmail::test_send_message_recipient_str": HOOKS,
            r"test_sendmail::test_send_message_smtputf8_sender.*": HOOKS,
            r"test_sendmail::test_send_mime_message_smtputf8_recipient.*": HOOKS,
            r"test_sendmail::test_send_compat32_message_smtputf8_recipient": HOOKS,
            r"test_sendmail::test_send_\w+_message_utf8_text_without_smtputf8": HOOKS,
            r"test_sendmail::test_send_message_7bit.*": HOOKS,
            r"test_sendmail::test_sendmail_size_option_counts_transmitted_octets_\w+": HOOKS,
            r"test_connect::test_bad_connect_response_raises_error": CLIENTS,
            r"test_connect::test_(eof|close)_on_connect_raises_connect_error": CLIENTS,
            r"test_timeouts::test_timeout_on_initial_read": CLIENTS,
            r"test_commands::test_badly_encoded_text_response": WRITER,
            r"test_connect::test_disconnected_server_raises_on_data_write": WRITER,
        },
    ),
)
