"""Options of TLS in a real process: the certificate, its key, and required TLS."""

from __future__ import annotations

import smtplib
import ssl
from typing import TYPE_CHECKING

import pytest
from support.daemon import LOCAL, PATIENCE, Daemon
from support.dialogue import ehlo

if TYPE_CHECKING:
    from pathlib import Path

    from support.tls import Certificates


def test_with_a_certificate_starttls_is_offered(tmp_path: Path, certificates: Certificates) -> None:
    tls = ("--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key))
    with Daemon(*LOCAL, *tls, cwd=tmp_path) as daemon, daemon.smtp() as client:
        assert "starttls" in ehlo(client)
        client.starttls(context=certificates.client)
        assert "starttls" not in ehlo(client)
        assert client.sendmail("a@example.com", "b@example.com", "hello") == {}


def test_the_key_may_be_in_the_certificates_file(
    tmp_path: Path, certificates: Certificates
) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(certificates.key.read_bytes() + certificates.cert.read_bytes())
    with Daemon(*LOCAL, "--tls-cert", "both.pem", cwd=tmp_path) as daemon, daemon.smtp() as client:
        client.starttls(context=certificates.client)
        assert client.noop()[0] == 250


def test_without_a_certificate_starttls_is_not_offered(tmp_path: Path) -> None:
    with Daemon(*LOCAL, cwd=tmp_path) as daemon, daemon.smtp() as client:
        assert "starttls" not in ehlo(client)


def test_smtps_uses_implicit_tls(tmp_path: Path, certificates: Certificates) -> None:
    tls = ("--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key))
    with Daemon("-l", "smtps:127.0.0.1:0", *tls, "--handler", "discard", cwd=tmp_path) as daemon:
        assert daemon.places[0].startswith("smtps:127.0.0.1:")
        with smtplib.SMTP_SSL(
            "127.0.0.1", daemon.port, context=certificates.client, timeout=PATIENCE
        ) as client:
            assert "starttls" not in ehlo(client)
            assert client.sendmail("a@example.com", "b@example.com", "hello") == {}


def test_require_starttls_rejects_mail_over_plaintext(
    tmp_path: Path, certificates: Certificates
) -> None:
    tls = ("--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key))
    with Daemon(*LOCAL, *tls, "--require-starttls", cwd=tmp_path) as daemon:
        with daemon.smtp() as client:
            client.ehlo()
            assert client.mail("a@example.com")[0] == 530
            client.starttls(context=certificates.client)
            client.ehlo()
            assert client.mail("a@example.com")[0] == 250


def test_tls_1_1_is_not_supported(tmp_path: Path, certificates: Certificates) -> None:
    tls = ("--tls-cert", str(certificates.cert), "--tls-key", str(certificates.key))
    old = ssl.create_default_context(cafile=str(certificates.ca))
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with Daemon(*LOCAL, *tls, cwd=tmp_path) as daemon, daemon.smtp() as client:
        with pytest.raises((ssl.SSLError, ConnectionError)):
            client.starttls(context=old)
        client.close()
        with daemon.smtp() as other:
            other.starttls(context=certificates.client)
