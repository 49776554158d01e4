"""PROXY headers: a client 192.0.2.1, port 1."""

from __future__ import annotations

import struct

from aiosmtpd.proxy_protocol import V2_SIGNATURE

V1 = b"PROXY TCP4 192.0.2.1 192.0.2.2 1 25\r\n"
V2 = V2_SIGNATURE + b"\x21\x11" + struct.pack("!H4s4sHH", 12, b"\xc0\0\2\1", b"\xc0\0\2\2", 1, 25)
BROKEN_V1 = b"PROXY TCP4 192.0.2.1\r\n"
