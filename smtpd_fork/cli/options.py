"""The table of options, with flags, metavariables and help texts.

Names of environment variables and keys of the configuration file are derived from it. Types and
defaults are those of :class:`smtpd_fork.config.DaemonConfig`.
"""

from __future__ import annotations

from smtpd_fork.cli.setting_option import SettingOption

__all__ = ["OPTIONS", "SECTIONS"]

_OPTIONS = {
    "Listening": {
        "-p, --port PORT":
            "Port for listen addresses without one. 0 picks a free port. Repeatable.",
        "-l, --listen-address ADDR":
            "Address to listen on: [PROTOCOL[+FLAG...]:]ADDRESS. PROTOCOL: smtp, smtps (implicit "
            "TLS) or lmtp. FLAG: proxy (a PROXY header is required), require-tls or no-tls. "
            "ADDRESS: HOST, HOST:PORT, [IPV6]:PORT or unix:PATH. Repeatable.",
        "--proxy-trust NET":
            "Network, or file of networks, of the proxies that may send PROXY headers. Repeatable.",
        "--proxy-timeout TIME":
            "Maximum wait for a PROXY header; then the connection is closed.",
        "--xclient-trust NET":
            "Network, or file of networks, of the hosts that may send XCLIENT, such as nginx; unix "
            "means the clients of unix sockets. Repeatable.",
        "--xforward-trust NET":
            "Like --xclient-trust, for XFORWARD, whose values are used only for the log and next "
            "hops. Repeatable.",
        "--probe-from NET":
            "Network, or file of networks, of load-balancer health checks. Their connections are "
            "not counted, not limited and not logged. Repeatable.",
        "--backlog N": "Length of the kernel's queue of waiting clients; see listen(2).",
        "--socket-mode MODE": "Octal file mode of unix sockets.",
    },
    "Limits": {
        "-c, --limit-connections N":
            "Maximum concurrent sessions. Further clients wait or get 421; see --when-full.",
        "-m, --max-from-ip N":
            "Maximum concurrent sessions per client (IPv4 address, or IPv6 network of "
            "--ipv6-prefix); more get 421. -c applies as well. 0 is no limit.",
        "--ipv6-prefix BITS": "IPv6 prefix length that counts as one client.",
        "--max-from-net N/PREFIX":
            "Maximum concurrent sessions per IPv4 or IPv6 network, as a number (100/24, 200/48), "
            "or as a share of -c that local networks are exempt from (25%/24); more get 421. "
            "Replaces the default. 0 is no limit. Repeatable.",
        "--rate N/PERIOD":
            "Rate limit: maximum new sessions per client and period (30/m, 5/10s); more get 421. "
            "Repeatable.",
        "--rate-net N/PERIOD/PREFIX":
            "Rate limit: maximum new sessions per network and period (100/m/24); more get 421. "
            "Repeatable.",
        "--fair-share":
            "Limit each client to an equal share of -c while more than 75 % of -c is in use; more "
            "get 421.",
        "--greet-pause TIME":
            "Delay the greeting by TIME; clients that send data before it get 554. 0 disables.",
        "--greet-pause-deny TIME":
            "Time for which a client that sends data before the greeting is denied, in all "
            "processes and on all nodes of --fleet. 0 denies no client.",
        "--reserve N": "Reserve N of the -c connections for the clients of --exempt.",
        "--when-full HOW":
            "Action when all -c connections are in use: defer (new clients wait in the kernel's "
            "queue), refuse (they get 421), or defer:SECONDS (they get 421 after SECONDS).",
        "--timeout TIME":
            "Idle timeout: end a session with 421 after TIME without a command (300, 5m). A "
            "command that has begun must be complete within TIME, at most 60 s.",
        "--stress-timeout TIME":
            "Replacement for --timeout, --tls-handshake-timeout and --data-timeout while 75 % of "
            "-c is in use. While all of -c is in use and clients wait, sessions without progress "
            "for TIME get 421. 0 disables.",
        "--tls-handshake-timeout TIME":
            "Maximum duration of a TLS handshake; then the connection is closed.",
        "--tls-failure-rate N/PERIOD":
            "Maximum failed and unfinished TLS handshakes per client and period, and four times "
            "as many per /24 or /48. More get 454 for STARTTLS; with implicit TLS the connection "
            "is closed. 0 is no limit.",
        "--data-timeout TIME":
            "Maximum wait for the next part of a message; then the session ends with 421.",
        "--min-data-rate N":
            "Minimum bytes per second of a message, measured over each minute from its first byte "
            "to its end, with BDAT over all chunks and the time between them; fewer get 421. 0 "
            "disables.",
        "--handler-timeout TIME":
            "Maximum run time of a handler hook. On expiry it is cancelled and the client gets "
            "451.",
        "--session-timeout TIME": "Maximum duration of a session; then it ends with 421.",
        "--max-errors N":
            "Maximum invalid commands per session; the next one gets 421 and ends the session.",
        "--max-rejects N":
            "Maximum rejected recipients and other rejected commands per session; the next one "
            "gets 421 and ends the session.",
        "--tarpit TIME":
            "Delay each reply by TIME to clients that made more than 10 errors, use more than 75 % "
            "of -m, or are on a --dnsbl below the threshold. At most 10 % of -c wait at a time. 0 "
            "disables.",
        "--max-recipients N": "Maximum recipients per message; more get 452.",
        "--max-hops N":
            "Maximum Received fields of a message; more get 554 (mail loop). 0 is no limit.",
        "--max-buffered SIZE":
            "Memory limit for messages, recipients and unsent replies of all sessions, not "
            "counting 64K per session; a message above it gets 452. Above 75 % of it, idle "
            "sessions that use much memory get 421, the largest first. 0 is no limit.",
        "--max-buffered-from-ip SIZE":
            "Memory limit like --max-buffered, but per client. Clients of --exempt have none. 0 "
            "is no limit.",
        "--max-loop-lag TIME":
            "Refuse new clients with 421 while the event loop lags by more than TIME. 0 disables.",
        "--max-message-size SIZE":
            "Maximum size of a message in bytes (or 25M); a larger one gets 552. 0 is no limit.",
        "--max-line-length SIZE":
            "Maximum length of a message's line in bytes, including its line end; a longer one "
            "gets 500. 0 is no limit.",
    },
    "Fleet": {
        "--fleet URL":
            "Redis or Valkey server through which nodes share -m, --max-from-net, --rate and "
            "--rate-net: redis://[USER@]HOST[:PORT][/DB], rediss:// (TLS), unix:PATH or "
            "sentinel://HOST,HOST/NAME. A limit with the prefix local: applies to this node only: "
            "-m local:50.",
        "--fleet-secret FILE": "File with the password for Redis.",
        "--fleet-tls-ca FILE": "CA certificates (PEM) to verify the certificate of Redis with.",
        "--fleet-prefix TEXT":
            "Prefix of the keys in Redis. Nodes with the same prefix form a fleet.",
        "--fleet-connections N":
            "Maximum concurrent sessions of all nodes together; -c applies to each node as well. "
            "0 is no limit.",
        "--fleet-node NAME": "Name of this node in the fleet.",
        "--fleet-timeout TIME":
            "Maximum time that a new client waits for Redis; on expiry the limits of this node "
            "alone apply until Redis answers in time. No longer than half of --fleet-lease.",
        "--fleet-lease TIME":
            "Time after which the sessions of a node that has stopped or is unreachable no "
            "longer count.",
        "--when-fleet-down HOW":
            "Handling of new clients while Redis is out of reach: local (the limits of this node "
            "apply) or refuse (they get 421).",
    },
    "Lists": {
        "--allow NET":
            "Allowlist: network, or file of networks, exempt from --deny. The most specific entry "
            "for an address decides. Repeatable.",
        "--deny NET":
            "Denylist: network, or file of lines NET [TEXT], whose clients get 554 and TEXT. "
            "Repeatable.",
        "--exempt NET":
            "Network, or file of networks, not subject to limits per client and per network. "
            "Repeatable.",
        "--dnsbl ZONE[=CODES][=WEIGHT]":
            "DNS blocklist; listed clients get 554. CODES selects the answers that count, such as "
            "127.0.0.[2;4..7]; by default all except the list's error codes. Repeatable.",
        "--dnsbl-threshold N":
            "Refuse a client when the weights of the blocklists it is on add up to N or more.",
        "--rdns":
            "Look up the reverse DNS name of each client, for handlers: session.host_name_dns.",
        "--dns-timeout TIME": "Maximum duration of a DNS query; on expiry the client is accepted.",
        "--dns-server ADDR": "DNS server to use, such as 192.0.2.53 or [::1]:5353.",
        "--refuse-first N": "For testing: refuse the first N clients with 421.",
        "--refuse-every N":
            "For testing: after those of --refuse-first, refuse every Nth client with 421.",
    },
    "Mail": {
        "--handler HANDLER":
            "Handler of messages: NAME:ARGUMENT,KEY=VALUE,... or module:attr. Names are accept, "
            "auth, milter, policy, rspamd, maildir, mbox, pipe, lmtp, relay, webhook, redis, nats, "
            "s3, debug and discard. Repeatable: the first answer of this chain is used.",
        "--reload-handlers":
            "For development: when a file of a module:attr handler changes, load the handlers "
            "again for new sessions.",
        "--bare-newline HOW":
            "Handling of a bare CR or LF in a message: normalize (to CRLF), accept (unchanged) or "
            "reject (550; also for NUL). A bare LF ends a command, except with reject.",
        "--strict-paths":
            "Reject MAIL and RCPT with 553 if the address is not in angle brackets or is next to "
            "a tab.",
        "--hostname NAME": "Name of this host in replies and headers.",
        "--authserv-id NAME":
            "Further name of this server in Authentication-Results. Fields of clients with this "
            "name are removed, as those with --hostname are. Repeatable.",
    },
    "TLS": {
        "--tls-cert FILE":
            "Certificate chain (PEM); STARTTLS is offered with it. Repeatable: a client gets the "
            "certificate for the name it requests, or the first.",
        "--tls-key FILE":
            "Private key (PEM) of the certificate. Repeatable, in the order of --tls-cert.",
        "--tls-min-version VERSION": "Minimum TLS version: 1.2 or 1.3.",
        "--tls-client-ca FILE":
            "CA certificates (PEM); clients are asked for a client certificate signed by one of "
            "them.",
        "--tls-client-verify HOW":
            "Handling of clients without a client certificate: optional (accept them) or require "
            "(mutual TLS: close the connection).",
        "--require-starttls": "Refuse mail over plaintext connections with 530.",
    },
    "Process": {
        "-u, --user USER":
            "Drop privileges to USER after binding the sockets; the daemon must start as root.",
        "--control PATH":
            "Path of the control socket that status, kick and so on use. Only root and the "
            "daemon's user have access.",
        "-d, --detach": "Run in the background; the command returns when the daemon is ready.",
        "--pid-file FILE": "Write the process ID to FILE, and lock FILE while the daemon runs.",
        "--processes N":
            "Number of processes, usually one per CPU core. With 2 or more, a supervisor replaces "
            "a process that ends. Limits apply to all processes together.",
        "--shutdown-timeout TIME":
            "Maximum duration of a graceful shutdown: after SIGTERM or SIGINT, wait up to TIME "
            "for messages being received. A second signal stops the daemon immediately.",
        "--loop LOOP": "Event loop: uvloop or asyncio.",
        "--metrics ADDR":
            "Serve metrics, health checks and a status page over HTTP on ADDR:PORT, [IPV6]:PORT "
            "or unix:PATH.",
    },
    "Log": {
        "--log-level LEVEL": "Minimum severity to log: debug, info, warning or error.",
        "--log-to WHERE":
            "Log destination: stderr, stdout, syslog, journald or a file (reopened on SIGHUP).",
        "--log-format FORMAT": "Log format: text, or json (one object per line).",
    },
}  # fmt: skip

SECTIONS = tuple(_OPTIONS)

OPTIONS = tuple(
    SettingOption(section, *row) for section, rows in _OPTIONS.items() for row in rows.items()
)
