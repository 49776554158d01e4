"""The pytest plugin in users' projects: each test runs pytest in another process."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from importlib.metadata import entry_points

import pytest

pytest_plugins = ["pytester"]

UNUSED = ["asyncio", "xdist", "timeout", "hypothesispytest", "pytest_mock"]
"""Plugins of this environment whose warnings would be errors, or that take time."""


@pytest.fixture(autouse=True)
def installed() -> None:
    names = [each.name for each in entry_points(group="pytest11")]
    assert "smtpd-fork" in names, "the environment is older than pyproject.toml: make lint"


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    return Run(pytester)


class Run:
    """Runs a test file as a user does, with each warning as an error."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester

    def __call__(self, test: str, *options: str, asynchronous: bool = False) -> pytest.RunResult:
        self.pytester.makepyfile(textwrap.dedent(test))
        left_out = [name for name in UNUSED if not (asynchronous and name == "asyncio")]
        options = (*(f"-pno:{name}" for name in left_out), *options)
        if asynchronous:
            options = (*options, "-oasyncio_default_fixture_loop_scope=function")
        return self.pytester.runpytest_subprocess("-Werror", *options)


def test_a_test_gets_a_server_by_the_name_of_the_fixture(run: Run) -> None:
    result = run(
        """
        import smtplib, threading

        def test_it(smtp_server):
            with smtplib.SMTP(smtp_server.host, smtp_server.port) as client:
                client.sendmail("a@example.org", ["b@example.com"], "Subject: hello")
            assert smtp_server.wait_for()[0].email["Subject"] == "hello"

        def test_the_next_one_gets_another(smtp_server):
            assert smtp_server.messages == []

        def test_nothing_is_left():
            assert threading.enumerate() == [threading.main_thread()]
        """
    )
    result.assert_outcomes(passed=3)


def test_the_fixture_works_in_asynchronous_tests(run: Run) -> None:
    result = run(
        """
        import aiosmtplib, pytest

        @pytest.mark.asyncio
        async def test_it(smtp_server):
            await aiosmtplib.send(
                "Subject: hello", hostname=smtp_server.host, port=smtp_server.port,
                sender="a@example.org", recipients=["b@example.com"],
            )
            assert len(await smtp_server.wait_for_async()) == 1
        """,
        asynchronous=True,
    )
    result.assert_outcomes(passed=1)


def test_options_are_set_by_overriding_a_fixture(run: Run) -> None:
    result = run(
        """
        import pytest, smtplib

        @pytest.fixture
        def smtp_server_options():
            return {"hostname": "mx.example.com", "max_message_size": 10}

        def test_it(smtp_server):
            with smtplib.SMTP(smtp_server.host, smtp_server.port) as client:
                with pytest.raises(smtplib.SMTPException):
                    client.sendmail("a@example.org", ["b@example.com"], "Subject: hello, hello")
        """
    )
    result.assert_outcomes(passed=1)


def test_a_timeout_shows_the_line_of_the_test_and_the_reason(run: Run) -> None:
    result = run(
        """
        def test_it(smtp_server):
            smtp_server.wait_for(timeout=0)
        """
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">*smtp_server.wait_for(timeout=0)",
            "E*TimeoutError: 0 of 1 messages within 0 s; no client has connected",
        ]
    )
    result.stdout.no_fnmatch_line("*arrival.result*")


def test_a_failed_test_leaves_no_thread_and_no_warning(run: Run) -> None:
    result = run(
        """
        import smtplib, threading

        def test_it(smtp_server):
            global client
            client = smtplib.SMTP(smtp_server.host, smtp_server.port)
            assert False

        def test_nothing_is_left():
            assert threading.enumerate() == [threading.main_thread()]
            client.close()
        """
    )
    result.assert_outcomes(passed=1, failed=1)


def test_the_fixtures_are_listed_with_what_they_do(run: Run) -> None:
    result = run("", "--fixtures")
    result.stdout.fnmatch_lines(["smtp_server --*", "*Serve SMTP on a free port*"])


def test_a_project_that_does_not_use_the_fixture_imports_nothing_of_smtpd_fork(run: Run) -> None:
    result = run(
        """
        import sys

        def test_it():
            ours = {name for name in sys.modules if name.startswith("smtpd_fork")}
            assert ours == {"smtpd_fork", "smtpd_fork.version", "smtpd_fork.pytest_plugin"}
            assert not {"aiosmtpd", "msgspec", "cryptography", "uvloop"} & set(sys.modules)
        """
    )
    result.assert_outcomes(passed=1)


def test_a_project_may_have_a_fixture_of_that_name(run: Run) -> None:
    result = run(
        """
        import pytest

        @pytest.fixture
        def smtp_server():
            return 5

        def test_it(smtp_server):
            assert smtp_server == 5
        """
    )
    result.assert_outcomes(passed=1)


def test_the_plugin_can_be_turned_off(run: Run) -> None:
    result = run("def test_it(smtp_server): pass", "-pno:smtpd-fork")
    result.assert_outcomes(errors=1)


def test_a_program_that_imports_smtpd_fork_does_not_import_pytest() -> None:
    program = (
        "import sys, smtpd_fork.testing; from smtpd_fork import *; print('pytest' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stdout == "False\n"
