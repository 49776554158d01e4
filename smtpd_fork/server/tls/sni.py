"""Selection of a certificate by the server name that the client sends (SNI, RFC 6066 3)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

    from smtpd_fork.server.tls.certificate import Certificate

__all__ = ["choose_by_name"]

_WILD = "*."


def choose_by_name(
    contexts: Sequence[ssl.SSLContext], certificates: Sequence[Certificate]
) -> tuple[str, ...]:
    """Make the first of *contexts* select the context whose certificate has the client's name.

    An exact name has precedence over a wildcard, which matches one label (RFC 9525 6.3), and an
    earlier certificate over a later one. The first certificate is used if the client sends no name,
    or a name that no certificate has.

    :param contexts: one for each certificate, in the same order, with the same other settings
    :returns: warnings about certificates that no client would get
    """
    if len(contexts) == 1:
        return ()  # without a callback for each handshake
    exact: dict[str, ssl.SSLContext | None] = {}
    wild: dict[str, ssl.SSLContext | None] = {}
    warnings = []
    for index, (context, certificate) in enumerate(zip(contexts, certificates, strict=True)):
        before = len(exact) + len(wild)
        for name in certificate.names:
            names, key = (wild, name[2:]) if name.startswith(_WILD) else (exact, name)
            # None for the first context: it keeps this table, so a reference would be a cycle.
            names.setdefault(key, context if index else None)
        if index and len(exact) + len(wild) == before:
            reason = "are in other certificates too" if certificate.names else "are missing"
            warnings.append(
                f"no client will get the certificate in {certificate.path}: the names in its "
                f"subjectAltName {reason}"
            )

    def choose(asking: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: object) -> None:
        if name is None:
            return
        name = name.lower().removesuffix(".")
        chosen = exact[name] if name in exact else wild.get(name.partition(".")[2])
        if chosen is not None:
            asking.context = chosen

    contexts[0].sni_callback = choose
    return tuple(warnings)
