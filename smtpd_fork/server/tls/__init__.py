"""TLS of a server: certificates from files, chosen by name, and read again when they change."""

from smtpd_fork.server.tls.certificate import Certificate
from smtpd_fork.server.tls.files import TlsFiles
from smtpd_fork.server.tls.keeper import TlsKeeper
from smtpd_fork.server.tls.rotation import Rotation

__all__ = ["Certificate", "Rotation", "TlsFiles", "TlsKeeper"]
