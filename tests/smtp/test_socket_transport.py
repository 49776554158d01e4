"""SocketTransport: an asyncio.Transport on a socket, with an epoll or the loop."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest
from support.server import until
from support.transport import LOST, Recorder, begun, pair, receive

from smtpd_fork.smtp.socket_transport import HIGH_WATER

if TYPE_CHECKING:
    from smtpd_fork.smtp.socket_poll import SocketPoll

FOUR_MIB = 4 * 1024 * 1024


class Buffered(asyncio.BufferedProtocol):
    """Receives into its own small buffer."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(4))
        self.data = b""

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.view

    def buffer_updated(self, nbytes: int) -> None:
        self.data += self.view[:nbytes].tobytes()


async def test_bytes_are_sent_and_received_and_the_end_is_reported_once(poll: SocketPoll) -> None:
    with pair() as (ours, theirs):
        transport = begun(poll, ours, told := Recorder())
        transport.write(b"220 hello\r\n")
        assert theirs.recv(100) == b"220 hello\r\n"  # in the same turn
        theirs.send(b"QUIT\r\n")
        await until(lambda: told.data == b"QUIT\r\n")
        theirs.shutdown(socket.SHUT_WR)
        await until(lambda: LOST in told.events)
        assert told.events == ["made", "eof", LOST]
        assert transport.is_closing()
        assert theirs.recv(1) == b""


async def test_data_that_the_client_does_not_read_is_kept_in_order(poll: SocketPoll) -> None:
    with pair() as (ours, theirs):
        transport = begun(poll, ours, told := Recorder())
        text = os.urandom(FOUR_MIB)
        transport.write(text[:-3])
        transport.write(bytearray(text[-3:-1]))
        transport.write(text[-1:])
        assert told.events == ["made", "pause"]
        assert HIGH_WATER < transport.get_write_buffer_size() < FOUR_MIB
        assert await receive(theirs, FOUR_MIB) == text
        await until(lambda: "resume" in told.events)
        assert told.events == ["made", "pause", "resume"]
        assert transport.get_write_buffer_size() == 0
        theirs.send(b"still read")
        await until(lambda: told.data == b"still read")


async def test_close_sends_buffered_data_and_stops_receiving(poll: SocketPoll) -> None:
    with pair() as (ours, theirs):
        transport = begun(poll, ours, told := Recorder())
        transport.write(bytes(FOUR_MIB))
        transport.close()
        transport.write(b"too late")
        theirs.send(b"not read")
        assert LOST not in told.events
        assert await receive(theirs, FOUR_MIB) == bytes(FOUR_MIB)
        await until(lambda: LOST in told.events)
        assert told.data == b""
        with pytest.raises(
            ConnectionResetError
        ):  # the data is unread; nothing was received after it
            theirs.recv(1)


async def test_abort_drops_unsent_data(poll: SocketPoll) -> None:
    with pair() as (ours, theirs):
        transport = begun(poll, ours, told := Recorder())
        transport.write(bytes(FOUR_MIB))
        transport.close()
        transport.abort()
        transport.abort()
        assert LOST not in told.events  # it is reported, but not during a call
        await until(lambda: LOST in told.events)
        assert len(await receive(theirs, FOUR_MIB)) < FOUR_MIB
        assert told.events.count(LOST) == 1


async def test_write_eof_waits_for_unsent_data_and_reading_continues(poll: SocketPoll) -> None:
    with pair() as (ours, theirs):
        transport = begun(poll, ours, told := Recorder())
        transport.write(bytes(FOUR_MIB))
        transport.write_eof()
        with pytest.raises(RuntimeError, match="after write_eof"):
            transport.write(b"more")
        assert await receive(theirs, FOUR_MIB + 1) == bytes(FOUR_MIB)
        theirs.send(b"heard")
        await until(lambda: told.data == b"heard")
        theirs.shutdown(socket.SHUT_WR)
        await until(lambda: LOST in told.events)


async def test_a_protocol_may_keep_the_connection_half_open(poll: SocketPoll) -> None:
    with pair() as (ours, theirs):
        transport = begun(poll, ours, told := Recorder(keep_open=True))
        theirs.shutdown(socket.SHUT_WR)
        await until(lambda: "eof" in told.events)
        await asyncio.sleep(0.02)
        assert told.events == ["made", "eof"]  # not again and again
        transport.write(b"the answer")
        assert await receive(theirs, 10) == b"the answer"
        transport.close()
        await until(lambda: LOST in told.events)


@pytest.mark.parametrize("does", ["reads", "writes", "has unsent bytes"])
async def test_a_reset_is_reported_with_its_error(poll: SocketPoll, does: str) -> None:
    with pair(tcp=True) as (ours, theirs):
        transport = begun(poll, ours, told := Recorder())
        if does != "reads":
            transport.pause_reading()
        if does == "has unsent bytes":
            transport.write(bytes(8 * FOUR_MIB))
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        if does == "writes":
            await until(lambda: transport.write(b"x") or transport.is_closing())
        await until(lambda: type(told.events[-1]) is tuple)
        assert isinstance(told.events[-1][1], ConnectionError)
        assert transport.get_extra_info("peername", "unknown") == "unknown"


async def test_while_reading_is_paused_bytes_stay_in_the_kernel(poll: SocketPoll) -> None:
    with pair() as (ours, theirs):
        transport = begun(poll, ours, told := Recorder())
        transport.pause_reading()
        transport.pause_reading()
        theirs.send(b"kept")
        await asyncio.sleep(0.02)
        assert told.data == b""
        assert not transport.is_reading()
        transport.resume_reading()
        assert transport.is_reading()
        await until(lambda: told.data == b"kept")
        transport.abort()
        transport.resume_reading()
        assert not transport.is_reading()


@pytest.mark.parametrize("where", ["connection_made", "data_received", "eof_received"])
async def test_a_protocol_that_raises_is_reported_to_the_loop_and_closed(
    poll: SocketPoll, where: str
) -> None:
    told = Recorder()

    def fail(*_: object) -> None:
        raise ValueError(where)

    setattr(told, where, fail)
    errors: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: errors.append(context))
    with pair() as (ours, theirs):
        theirs.send(b"x")
        theirs.shutdown(socket.SHUT_WR)
        transport = begun(poll, ours, told)
        await until(lambda: told.events and type(told.events[-1]) is tuple)
        assert [str(each["exception"]) for each in errors] == [where]
        assert str(told.events[-1][1]) == where
        assert transport.is_closing()


async def test_a_buffered_protocol_is_supported(poll: SocketPoll) -> None:
    with pair() as (ours, theirs):
        transport = begun(poll, ours, Recorder())
        buffered = Buffered()
        transport.set_protocol(buffered)
        assert transport.get_protocol() is buffered
        theirs.send(b"more than four bytes")
        await until(lambda: buffered.data == b"more than four bytes")
        transport.abort()
        await asyncio.sleep(0)


async def test_a_socket_is_detached_with_its_unsent_data(poll: SocketPoll) -> None:
    with pair() as (ours, theirs):
        transport = begun(poll, ours, told := Recorder())
        transport.write(bytes(FOUR_MIB))
        sock, unsent = transport.detach()
        assert sock is ours
        theirs.send(b"not for it")
        assert await receive(theirs, FOUR_MIB - len(unsent)) == bytes(FOUR_MIB - len(unsent))
        transport.abort()
        await asyncio.sleep(0.02)
        assert told.events == ["made", "pause"]
        assert ours.recv(100) == b"not for it"


async def test_a_closed_socket_cannot_be_detached(poll: SocketPoll) -> None:
    with pair() as (ours, _theirs):
        transport = begun(poll, ours, told := Recorder())
        transport.abort()
        with pytest.raises(ConnectionResetError):
            transport.detach()
        await until(lambda: LOST in told.events)


async def test_limits_and_extra_info_are_those_of_any_transport(poll: SocketPoll) -> None:
    with pair(tcp=True) as (ours, theirs):
        transport = begun(poll, ours, told := Recorder())
        assert isinstance(transport, asyncio.Transport)
        assert transport.can_write_eof()
        assert transport.get_write_buffer_limits() == (HIGH_WATER // 4, HIGH_WATER)
        transport.set_write_buffer_limits(high=8)
        assert transport.get_write_buffer_limits() == (2, 8)
        transport.set_write_buffer_limits(low=3)
        assert transport.get_write_buffer_limits() == (3, 12)
        with pytest.raises(ValueError, match="must be >="):
            transport.set_write_buffer_limits(high=1, low=2)
        assert transport.get_extra_info("peername") == theirs.getsockname()
        assert transport.get_extra_info("sockname") == theirs.getpeername()
        assert transport.get_extra_info("socket").fileno() == ours.fileno()
        assert transport.get_extra_info("sslcontext") is None
        assert transport.get_extra_info("nonsense", 7) == 7
        transport.writelines([b"a", b"b"])
        assert await receive(theirs, 2) == b"ab"
        transport.close()
        await until(lambda: LOST in told.events)
        assert transport.get_extra_info("sockname") is None
