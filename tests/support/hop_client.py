"""The client of a next hop without a socket: tests feed it replies and read what it sends."""

from __future__ import annotations

from itertools import pairwise

from smtpd_fork.hops.client import Client, Order, State, Terms

EHLO = "250-hop\r\n250-PIPELINING\r\n250 8BITMIME"
MAIL, RCPTS = b"MAIL FROM:<a@x>\r\n", [b"RCPT TO:<b@x>\r\n", b"RCPT TO:<c@x>\r\n"]


class Wire:
    """A client, and the bytes that it has sent."""

    def __init__(self, **terms: object) -> None:
        self.client = Client(Terms("me.example", **terms))  # type: ignore[arg-type]
        self.sent = b""

    def say(self, *replies: str, cuts: tuple[int, ...] = ()) -> bytes:
        """Feed replies to the client, and return what it then sends."""
        stream = "".join(f"{reply}\r\n" for reply in replies).encode()
        edges = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
        for start, end in pairwise(edges):
            self.client.receive(stream[start:end])
        return self.take()

    def take(self) -> bytes:
        taken = b""
        while piece := self.client.data_to_send():
            taken += piece
        self.sent += taken
        return taken

    def ready(self, ehlo: str = EHLO) -> Wire:
        self.say("220 hop")
        self.say(ehlo)
        assert self.client.state is State.READY
        return self

    def send(self, *, content: bytes | None = b"text\r\n.\r\n", chunked: bool = False) -> Order:
        pieces = None if content is None else iter([content])
        order = Order(MAIL, RCPTS, pieces, chunked)
        self.client.begin(order)
        return order

    def codes(self) -> list[int | None]:
        assert self.client.order is not None
        return [reply and reply.code for reply in self.client.order.replies]
