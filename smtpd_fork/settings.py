"""Settings: the keywords of Server, for type checkers; ``make papers`` generates this file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from smtpd_fork.config import WhenFull

__all__ = ["GateSettings", "Settings"]


class GateSettings(TypedDict, total=False):
    """The limits of a gate by name, for :class:`smtpd_fork.Limits`."""

    limit_connections: int | None
    max_from_ip: int | None
    ipv6_prefix: int | None
    max_from_net: Sequence[str] | str | None
    rate: Sequence[str] | str | None
    rate_net: Sequence[str] | str | None
    fair_share: bool | None
    allow: Sequence[str] | str | None
    deny: Sequence[str] | str | None
    exempt: Sequence[str] | str | None
    reserve: int | None
    max_loop_lag: float | str | None
    refuse_first: int | None
    refuse_every: int | None
    tls_failure_rate: str | None


class Settings(GateSettings, total=False):
    """The settings by name, for :meth:`smtpd_fork.Config.build`; None means the default.

    :class:`smtpd_fork.Config` documents them.
    """

    fleet: str | None
    fleet_secret: str | None
    fleet_tls_ca: str | None
    fleet_prefix: str | None
    fleet_connections: int | None
    fleet_node: str | None
    fleet_timeout: float | str | None
    fleet_lease: float | str | None
    when_fleet_down: Literal["local", "refuse"] | None
    tls_cert: Sequence[str] | str | None
    tls_key: Sequence[str] | str | None
    tls_min_version: Literal["1.2", "1.3"] | None
    tls_client_ca: str | None
    tls_client_verify: Literal["optional", "require"] | None
    require_starttls: bool | None
    listen: Sequence[str] | str | None
    port: Sequence[int] | int | None
    backlog: int | None
    socket_mode: int | str | None
    greet_pause: float | str | None
    greet_pause_deny: float | str | None
    proxy_trust: Sequence[str] | str | None
    proxy_timeout: float | str | None
    xclient_trust: Sequence[str] | str | None
    xforward_trust: Sequence[str] | str | None
    probe_from: Sequence[str] | str | None
    dnsbl: Sequence[str] | str | None
    dnsbl_threshold: int | None
    rdns: bool | None
    dns_timeout: float | str | None
    dns_server: str | None
    when_full: WhenFull | str | None
    hostname: str | None
    authserv_id: Sequence[str] | str | None
    max_message_size: int | str | None
    timeout: float | str | None
    stress_timeout: float | str | None
    data_timeout: float | str | None
    min_data_rate: int | None
    handler_timeout: float | str | None
    session_timeout: float | str | None
    tls_handshake_timeout: float | str | None
    max_errors: int | None
    max_rejects: int | None
    tarpit: float | str | None
    max_recipients: int | None
    max_hops: int | None
    max_buffered: int | str | None
    max_buffered_from_ip: int | str | None
    strict_paths: bool | None
    max_line_length: int | str | None
    bare_newline: Literal["reject", "normalize", "accept"] | None
    shutdown_timeout: float | str | None
