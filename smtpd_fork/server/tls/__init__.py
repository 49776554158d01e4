"""TLS of a server: certificates from files, selected by SNI, and reloaded when the files change."""

from smtpd_fork.server.tls.certificate import Certificate
from smtpd_fork.server.tls.files import TlsFiles, file_signature
from smtpd_fork.server.tls.rotation import Rotation
from smtpd_fork.server.tls.server_tls import ServerTls

__all__ = ["Certificate", "Rotation", "ServerTls", "TlsFiles", "file_signature"]
