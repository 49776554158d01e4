"""A DNS server on loopback, with the records that a test gives it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class NameServer(asyncio.DatagramProtocol):
    """Answers from a table. Other names do not exist, except 127.0.0.2 of a blocklist.

    :ivar records: by name and type: the texts of the answers, separated by spaces; None: no answer;
        "SERVFAIL": this error. MX is written PREFERENCE/NAME, TXT in the format of :func:`txt`
    :ivar asked: names and types of the queries, in order
    """

    def __init__(self) -> None:
        self.records: dict[tuple[str, str], str | None] = {}
        self.asked: list[tuple[str, str]] = []
        self.ttl = 60

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        query = dns.message.from_wire(data)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        kind = dns.rdatatype.to_text(question.rdtype)
        self.asked.append((name, kind))
        is_test_entry = name.startswith("2.0.0.127.") and kind == "A"  # RFC 5782 5
        answer = self.records.get((name, kind), "127.0.0.2" if is_test_entry else "")
        if answer is None:
            return
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        if answer == "SERVFAIL":
            response.set_rcode(dns.rcode.SERVFAIL)
        elif answer == "nonsense":
            self._transport.sendto(b"\0\1nonsense", addr)
            return
        elif answer:
            texts = answer.split()
            if kind == "MX":
                texts = [f"{each.replace('/', ' ').rstrip('.')}." for each in texts]
            response.answer.append(dns.rrset.from_text(question.name, self.ttl, "IN", kind, *texts))
        elif not any(name == known for known, _ in self.records):
            response.set_rcode(dns.rcode.NXDOMAIN)
        self._transport.sendto(response.to_wire(), addr)

    @property
    def address(self) -> str:
        host, port = self._transport.get_extra_info("sockname")[:2]
        return f"{host}:{port}"


def txt(text: str) -> str:
    """Return the text of a TXT record as one word; it is one string of at most 255 octets."""
    return "".join(f"\\{octet:03}" for octet in text.encode())


@asynccontextmanager
async def name_server(host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[NameServer]:
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(NameServer, local_addr=(host, port))
    try:
        yield server
    finally:
        transport.close()
