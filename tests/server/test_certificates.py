"""Certificates: selection by SNI, unusable files, and warnings before they expire."""

from __future__ import annotations

import logging
import os
import ssl
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.daemon import LOCAL, Daemon, run
from support.openssl import s_client
from support.place import only_line
from support.server import serve

from smtpd_fork import Server
from smtpd_fork.config import Config, SettingError
from smtpd_fork.errors import ConfigError
from smtpd_fork.server.tls import Certificate
from smtpd_fork.server.tls.files import MAX_FILE_SIZE, TlsFiles
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from pathlib import Path

    from support.authority import Authority

SMTPS = ("-l", "smtps:127.0.0.1:0", "--handler", "discard")


def files(*certs: Path, keys: tuple[Path, ...] = (), **more: Any) -> TlsFiles:
    settings = {"tls_cert": [str(c) for c in certs], "tls_key": [str(k) for k in keys] or None}
    found = TlsFiles.of(Config.build({**settings, **more}))
    assert found is not None
    return found


def names_shown(context: ssl.SSLContext, authority: Authority, name: str | None) -> set[str]:
    """Do a handshake in memory; return the names of the certificate that the client gets."""
    client_side = authority.client()
    client_side.check_hostname = False
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = context.wrap_bio(to_server, to_client, server_side=True)
    client = client_side.wrap_bio(to_client, to_server, server_hostname=name)
    done = 0
    while done < 2:
        done = 0
        for side in (client, server):
            try:
                side.do_handshake()
                done += 1
            except ssl.SSLWantReadError:
                pass
    shown = client.getpeercert()
    assert shown is not None
    return {str(name[1]) for name in shown["subjectAltName"]}


# -- selection by name -------------------------------------------------------------------------


@pytest.mark.parametrize("starttls", [False, True], ids=["smtps", "starttls"])
def test_openssl_gets_the_certificate_with_the_requested_name(
    tmp_path: Path, authority: Authority, starttls: bool
) -> None:
    first = authority.issue("first", "mx.example.com")
    second = authority.issue("second", "mx.example.org", "*.example.net")
    where = LOCAL if starttls else SMTPS
    with Daemon(*where, *first.options, *second.options, cwd=tmp_path) as daemon:
        for name, wanted in [
            ("mx.example.com", first),
            ("mx.example.org", second),
            ("MX.Example.ORG", second),
            ("any.example.net", second),
            ("nobodys.example", first),
            (None, first),
        ]:
            shaken = s_client(daemon.port, authority, starttls=starttls, name=name)
            assert (shaken.status, shaken.serial) == (0, wanted.serial), name


def test_names_have_precedence_over_wildcards_and_earlier_certificates_over_later(
    authority: Authority,
) -> None:
    issued = [
        authority.issue("a", "a.example", "*.two.example"),
        authority.issue("b", "b.example", "x.two.example", "a.example"),
        authority.issue("c", "c.example", "*.two.example", "*.three.example"),
    ]
    loaded = files(*(i.cert for i in issued), keys=tuple(i.key for i in issued)).load()
    for name, one_of_its_names in {
        "a.example": "*.two.example",
        "y.two.example": "a.example",
        "x.two.example": "b.example",
        "b.example": "x.two.example",
        "y.three.example": "c.example",
        "z.y.three.example": "a.example",
        "three.example": "a.example",
        "c.example.": "*.three.example",
        "nobodys": "a.example",
    }.items():
        shown = names_shown(loaded.context, authority, name)
        assert one_of_its_names in shown, name
    assert loaded.warnings == ()
    assert loaded.certificates[0].names == ("a.example", "*.two.example")


def test_a_certificate_that_no_client_gets_is_logged_as_a_warning(authority: Authority) -> None:
    first = authority.issue("first", "a.example", "b.example")
    same = authority.issue("same", "B.example")
    none = authority.issue("none", common_name="c.example")
    loaded = files(first.cert, same.cert, none.cert, keys=(first.key, same.key, none.key)).load()
    shadowed, nameless = loaded.warnings
    assert str(same.cert) in shadowed
    assert str(none.cert) in nameless
    assert "subjectAltName are missing" in nameless
    assert (
        files(none.cert, keys=(none.key,)).load().warnings == ()
    )  # the only certificate is used for all clients


def test_a_name_that_is_not_ascii_fails_with_one_log_line(
    tmp_path: Path, authority: Authority
) -> None:
    """The ssl module would print three lines on stderr for each."""
    first, second = authority.issue("first", "localhost"), authority.issue("second", "b.example")
    options = (*SMTPS, *first.options, *second.options)
    with Daemon(*options, cwd=tmp_path) as daemon:
        assert s_client(daemon.port, authority, name="caf\u00e9.example").status != 0
        daemon.wait_for("TLS handshake failed: .*callback failed")
        assert s_client(daemon.port, authority).status == 0
        assert "Traceback" not in daemon.log
        assert "ignored" not in daemon.log


def test_with_one_certificate_there_is_no_sni_callback(authority: Authority) -> None:
    issued = authority.issue("one", "a.example")
    assert files(issued.cert, keys=(issued.key,)).load().context.sni_callback is None


# -- versions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "taken"),
    [((), {"-tls1_2", "-tls1_3"}), (("--tls-min-version", "1.3"), {"-tls1_3"})],
    ids=["by default", "1.3"],
)
def test_openssl_connects_with_the_supported_versions(
    tmp_path: Path, authority: Authority, options: tuple[str, ...], taken: set[str]
) -> None:
    first, second = authority.issue("first", "localhost"), authority.issue("second", "b.example")
    settings = (*SMTPS, *first.options, *second.options, *options)
    with Daemon(*settings, cwd=tmp_path) as daemon:
        for version in ("-tls1_1", "-tls1_2", "-tls1_3"):
            for name in ("localhost", "b.example"):
                weak = ("-cipher", "ALL:@SECLEVEL=0")
                shaken = s_client(daemon.port, authority, version, *weak, name=name)
                assert (shaken.status == 0) == (version in taken), (version, shaken.text)


def test_openssl_cannot_renegotiate_in_a_session(tmp_path: Path, authority: Authority) -> None:
    """Renegotiation is cheap for the client and expensive for the server (CVE-2011-1473)."""
    issued = authority.issue("first", "localhost")
    with Daemon(*SMTPS, *issued.options, cwd=tmp_path) as daemon:
        options = (
            "-tls1_2",
            "-no_ign_eof",
        )  # the last option applies: R is a command of s_client then
        shaken = s_client(daemon.port, authority, *options, say="R\nNOOP\n")
        assert "RENEGOTIATING" in shaken.text
        assert shaken.status != 0
        assert "no renegotiation" in shaken.text
    loaded = files(issued.cert, keys=(issued.key,)).load()
    assert loaded.context.options & ssl.OP_NO_RENEGOTIATION


# -- files -------------------------------------------------------------------------------------


def test_a_wrong_number_of_keys_is_an_error_with_both_numbers(tmp_path: Path) -> None:
    options = ("--tls-cert", "a.pem", "--tls-cert", "b.pem", "--tls-key", "a.key")
    ended = run(*LOCAL, *options, cwd=tmp_path)
    assert ended.returncode == os.EX_USAGE
    line = only_line(ended)
    assert "--tls-key 'a.key': 1 given, and --tls-cert has 2 (a.pem, b.pem)" in line


def test_certificates_may_have_their_keys_in_the_same_files(
    tmp_path: Path, authority: Authority
) -> None:
    issued = [authority.issue("a", "a.example"), authority.issue("b", "b.example")]
    for one in issued:
        one.cert.write_bytes(one.key.read_bytes() + one.cert.read_bytes())
    loaded = files(*(one.cert for one in issued)).load()
    assert names_shown(loaded.context, authority, "b.example") == {"b.example"}


def test_the_error_names_an_unusable_file_and_the_reason(
    tmp_path: Path, authority: Authority
) -> None:
    good = authority.issue("good", "a.example")
    other = authority.issue("other", "a.example")
    empty, huge, pipe = tmp_path / "empty", tmp_path / "huge", tmp_path / "pipe"
    empty.write_bytes(b"")
    with huge.open("wb") as file:
        file.truncate(MAX_FILE_SIZE + 1)
    os.mkfifo(pipe)
    cut = tmp_path / "cut"
    cut.write_bytes(good.cert.read_bytes()[:200])
    malformed = tmp_path / "malformed"
    malformed.write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    for cert, key, reason in [
        (tmp_path / "absent", good.key, "absent: No such file"),
        (good.cert, tmp_path / "absent", "absent: No such file"),
        (good.cert, other.key, "is not the key of"),
        (good.cert, empty, f"{empty}: "),
        (empty, good.key, f"{empty}, "),
        (cut, good.key, f"{cut}, "),
        (malformed, good.key, f"{malformed}, "),
        (huge, good.key, "huge: it has more than 1048576 bytes"),
        (pipe, good.key, "pipe: it is not a regular file"),
        (good.cert, pipe, "pipe: it is not a regular file"),
        (tmp_path, good.key, f"{tmp_path}: it is not a regular file"),
    ]:
        with pytest.raises(ConfigError) as caught:
            files(cert, keys=(key,)).load()
        assert reason in str(caught.value), (cert, key)
        assert "\n" not in str(caught.value)


def test_the_error_names_an_unusable_client_ca(tmp_path: Path, authority: Authority) -> None:
    good = authority.issue("good", "a.example")
    for path, reason in [(tmp_path / "absent", "No such file"), (good.key, "no PEM cert")]:
        ended = run(*LOCAL, *good.options, "--tls-client-ca", str(path), cwd=tmp_path)
        assert ended.returncode == os.EX_CONFIG
        line = only_line(ended)
        assert str(path) in line
        assert "--tls-client-ca" in line
        assert reason in line or "NO_CERTIFICATE" in line


def test_reading_files_that_change_all_the_time_is_an_error(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = authority.issue("good", "a.example")
    found = files(good.cert, keys=(good.key,))
    counter = iter(range(100))
    monkeypatch.setattr(TlsFiles, "signature", lambda _: ((next(counter),),))
    with pytest.raises(ConfigError, match="they change while they are read"):
        found.load()


def test_files_that_changed_while_they_were_read_are_read_again(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files change between reading certificate and key, which then do not match."""
    old, new = authority.issue("old", "a.example"), authority.issue("new", "b.example")
    found = files(old.cert, keys=(old.key,))
    whole = TlsFiles._context
    key = old.key.read_bytes()
    old.key.write_bytes(new.key.read_bytes())

    def renewed(self: TlsFiles, cert: Path, key_file: Path | None) -> ssl.SSLContext:
        try:
            return whole(self, cert, key_file)
        finally:
            if old.key.read_bytes() != key:
                old.key.write_bytes(key)

    monkeypatch.setattr(TlsFiles, "_context", renewed)
    assert found.load().certificates[0].names == ("a.example",)


# -- expiry ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begins", "ends", "said"),
    [
        (-30, -1, "has expired: "),
        (-30, 13.5, "expires in 13 days: "),
        (1, 90, "is not valid before "),
        (-30, 15, None),
    ],
)
async def test_a_certificate_that_expires_soon_is_logged_at_start_and_reload(
    authority: Authority,
    caplog: pytest.LogCaptureFixture,
    begins: float,
    ends: float,
    said: str | None,
) -> None:
    issued = authority.issue(
        "cert", "localhost", begins=timedelta(days=begins), ends=timedelta(days=ends)
    )
    with caplog.at_level(logging.WARNING, "smtpd_fork"):
        async with serve(Discard(), tls_cert=str(issued.cert), tls_key=str(issued.key)) as server:
            for _ in range(2):
                warnings = [text for text in caplog.messages if str(issued.cert) in text]
                assert len(warnings) == (said is not None)
                assert all(str(said) in warning for warning in warnings)
                caplog.clear()
                await server.reload()


def test_warnings_begin_two_weeks_before_a_certificate_expires(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    for left, warned in [(timedelta(days=14), True), (timedelta(days=14, seconds=1), False)]:
        certificate = Certificate(tmp_path, (), now - timedelta(days=1), now + left)
        assert (certificate.warning(now) is not None) == warned


# -- in a program ------------------------------------------------------------------------------


async def test_a_context_of_the_caller_stays_in_use(authority: Authority) -> None:
    issued = authority.issue("own", "localhost")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(issued.cert, issued.key)
    listen = ["127.0.0.1:0", "smtps:127.0.0.1:0"]
    async with serve(Discard(), listen=listen, tls_context=context) as server:
        assert server.certificates == ()
        async with await Client.to(server.addresses[0]) as client:
            await client.greet()
            await client.start_tls(authority.client())
            assert (await client.say("EHLO x")).code == 250
        async with await Client.to(server.addresses[1], tls=authority.client()) as client:
            assert (await client.greet()).code == 250
        await server.reload()
        renewed = authority.issue("renewed", "localhost")
        context.load_cert_chain(renewed.cert, renewed.key)  # as the manual says
        async with await Client.to(server.addresses[1], tls=authority.client()) as client:
            shown = client.writer.get_extra_info("peercert")["serialNumber"]
            assert shown.lstrip("0") == renewed.serial


async def test_a_server_has_a_list_of_its_certificates(authority: Authority) -> None:
    issued = authority.issue("own", "localhost", "127.0.0.1")
    async with serve(Discard(), tls_cert=str(issued.cert), tls_key=str(issued.key)) as server:
        (certificate,) = server.certificates
        assert certificate.path == issued.cert
        assert certificate.names == ("localhost",)
        assert certificate.not_after > datetime.now(UTC)


@pytest.mark.parametrize("listen", ["smtps:127.0.0.1:0", "smtp+require-tls:127.0.0.1:0"])
def test_an_implicit_tls_address_needs_a_certificate(listen: str) -> None:
    with pytest.raises(SettingError, match="needs tls_cert") as caught:
        Server(Discard(), listen=[listen])
    assert caught.value.value == listen
