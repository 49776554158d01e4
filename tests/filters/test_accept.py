"""The filter accept in sessions: which clients may send to which recipients."""

from __future__ import annotations

import base64
import smtplib
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.lmtp import LMTP
from blockbuster import BlockBuster
from support.accept import MAP, accept, rcpt
from support.client import Client
from support.handlers import Collect, check_password
from support.ports import free_port
from support.server import serve

from smtpd_fork.errors import HandlerError
from smtpd_fork.filters import Accept
from smtpd_fork.handlers import Chain, load_handlers
from smtpd_fork.setting_types import SettingError

if TYPE_CHECKING:
    from pathlib import Path


async def test_recipients_are_accepted_refused_and_replaced(tmp_path: Path) -> None:
    kept = Collect()
    async with (
        serve([accept(tmp_path), kept]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        assert await rcpt(
            client,
            *("bob@example.com", "BOB+news@EXAMPLE.com", "old@example.com", "busy@example.com"),
            *("nobody@example.com", "bob@example.net", "postmaster", "all@example.com"),
            "@example.net,@example.org:bob@example.com",
        ) == [
            *[(250, "2.1.5"), (250, "2.1.5"), (550, "5.1.6"), (450, "4.2.1")],
            *[(550, "5.1.1"), (550, "5.7.1"), (250, "2.1.5"), (250, "2.1.5")],
            (250, "2.1.5"),
        ]
        await client.say("DATA")
        client.send("x\r\n.\r\n")
        assert (await client.reply()).code == 250
    assert kept.envelopes[0].rcpt_tos == [
        *("bob@example.com", "BOB+news@EXAMPLE.com", "postmaster"),
        *("carol@example.com", "dave@example.org"),
    ]


@pytest.mark.parametrize("may", [True, False])
async def test_a_client_that_has_authenticated_may_send_to_any_recipient_unless_forbidden(
    may: bool,
) -> None:
    options = {"authenticator": check_password, "auth_require_tls": False}
    async with (
        serve(
            [Accept(["example.com"], relay_authenticated=may), Collect()], session_options=options
        ) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        assert await rcpt(client, "bob@example.net") == [(550, "5.7.1")]
        await client.say("RSET")
        login = base64.b64encode(b"\0user\0pass").decode()
        assert (await client.say(f"AUTH PLAIN {login}")).code == 235
        wanted = (250, "2.1.5") if may else (550, "5.7.1")
        assert await rcpt(client, "bob@example.net") == [wanted]


@pytest.mark.parametrize(
    ("listen", "relay_from", "may"),
    [
        ("127.0.0.1:0", "127.0.0.0/8", True),
        ("127.0.0.1:0", "127.0.0.2", False),
        ("127.0.0.1:0", "::/0", False),
        ("[::1]:0", "::1", True),
        ("[::1]:0", "0.0.0.0/0", False),
    ],
)
async def test_clients_of_some_networks_may_send_to_any_recipient(
    tmp_path: Path, listen: str, relay_from: str, may: bool
) -> None:
    (tmp_path / "networks").write_text(f"# ours\n{relay_from} # a comment\n")
    for networks in ([relay_from], [f"{tmp_path}/networks"]):
        async with (
            serve([Accept(["example.com"], relay_from=networks), Collect()], listen=[listen]) as at,
            await Client.to(at.addresses[0]) as client,
        ):
            await client.greet()
            codes = [code for code, _ in await rcpt(client, "b@example.net", "b@example.com")]
            assert codes == [250 if may else 550, 250]


async def test_an_ipv4_client_of_a_dual_stack_socket_matches_ipv4_networks(tmp_path: Path) -> None:
    text = "127.0.0.3 REJECT Not you\n@example.com\n"
    made = accept(tmp_path, text, relay_from=["127.0.0.2"])
    async with serve([made, Collect()], listen=["[::]:0"]) as server:
        for source, codes in {"127.0.0.2": [250, 250], "127.0.0.3": [550, 550]}.items():
            async with await Client.to(server.addresses[0], source=source) as client:
                await client.greet()
                answers = await rcpt(client, "b@example.net", "b@example.com")
                assert [code for code, _ in answers] == codes


async def test_a_client_of_a_unix_socket_matches_no_network(tmp_path: Path) -> None:
    made = Accept(["example.com"], relay_from=["0.0.0.0/0", "::/0"])
    async with (
        serve([made, Collect()], listen=[f"unix:{tmp_path}/s"]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        assert await rcpt(client, "b@example.net", "b@example.com") == [
            (550, "5.7.1"), (250, "2.1.5"),
        ]  # fmt: skip


async def test_a_utf8_address_is_looked_up_in_utf8_and_in_punycode(
    tmp_path: Path,
) -> None:
    path = tmp_path / "map"
    path.write_text("müller@bücher.example\n")
    made = Accept(["xn--bcher-kva.example"], recipients=str(path))
    async with (
        serve([made, Collect()]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.say("MAIL FROM:<a@example.net> SMTPUTF8")
        for address, code in {
            "müller@bücher.example": 250, "Müller@xn--bcher-kva.example": 250,
            "maier@bücher.example": 550, "müller@büche.example": 550,
        }.items():  # fmt: skip
            assert (await client.say(f"RCPT TO:<{address}>")).code == code, address


async def test_each_of_ten_thousand_recipients_gets_its_own_reply(tmp_path: Path) -> None:
    text = "".join(f"user{number}@example.com\n" for number in range(0, 10_000, 2))
    kept = Collect()
    async with (
        serve(
            [accept(tmp_path, text), kept],
            max_recipients=10_000,
            max_rejects=100_000,
        ) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        await client.say("MAIL FROM:<a@example.net>")
        for first in range(0, 10_000, 1000):
            numbers = range(first, first + 1000)
            client.send("".join(f"RCPT TO:<user{number}@example.com>\r\n" for number in numbers))
            codes = [(await client.reply()).code for _ in numbers]
            assert codes == [250, 550] * 500
        await client.say("DATA")
        client.send("x\r\n.\r\n")
        assert (await client.reply()).code == 250
    assert len(kept.envelopes[0].rcpt_tos) == 5000


async def test_neither_a_recipient_nor_a_reload_blocks_the_event_loop(tmp_path: Path) -> None:
    async with (
        serve([accept(tmp_path), Collect()]) as server,
        await Client.to(server.addresses[0]) as client,
    ):
        await client.greet()
        (tmp_path / "recipients.map").write_text(f"{MAP}erin@example.com\n")
        blockbuster = BlockBuster()
        blockbuster.activate()
        try:
            assert (await server.reload())[0].endswith("recipients.map read again (5 -> 6 rules)")
            assert (await client.deliver(to="all@example.com")).code == 250
        finally:
            blockbuster.deactivate()


def test_it_refuses_accepts_and_replaces_recipients_under_aiosmtpd(tmp_path: Path) -> None:
    kept = Collect()
    chain = Chain([accept(tmp_path), kept])
    controller = Controller(chain, "127.0.0.1", free_port("127.0.0.1"))
    controller.start()
    try:
        with smtplib.SMTP("127.0.0.1", controller.port) as client:
            refused = client.sendmail(
                "a@example.net",
                ["all@example.com", "nobody@example.com", "b@example.net", "bob@example.com"],
                "Subject: x\r\n\r\nhello\r\n",
            )
    finally:
        controller.stop()
    assert {to: code for to, (code, _) in refused.items()} == {
        "nobody@example.com": 550, "b@example.net": 550,
    }  # fmt: skip
    assert kept.envelopes[0].rcpt_tos == [
        *("bob@example.com", "carol@example.com", "dave@example.org"),
    ]


def test_a_subclass_with_handle_data_runs_under_aiosmtpd(tmp_path: Path) -> None:
    class Server(LMTP):
        """The server of an LMTP controller."""

    class Both(Accept):
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            return f"250 2.0.0 {len(envelope.rcpt_tos)}"

    (tmp_path / "map").write_text(MAP)
    handler = Both(["example.com"], recipients=str(tmp_path / "map"))
    controller = Controller(handler, "127.0.0.1", free_port("127.0.0.1"))
    controller.start()
    try:
        with smtplib.SMTP("127.0.0.1", controller.port) as client:
            client.ehlo()
            client.mail("a@example.net")
            assert client.rcpt("all@example.com")[0] == 250
            assert client.rcpt("b@example.net")[0] == 550
            assert client.data("x\r\n") == (250, b"2.0.0 3")
    finally:
        controller.stop()


def test_relative_files_are_resolved_against_the_given_directory(
    tmp_path: Path,
) -> None:
    (tmp_path / "map").write_text("bob@example.com\n")
    (tmp_path / "domains").write_text("example.com\n*.example.net\n")
    (tmp_path / "networks").write_text("192.0.2.0/24\n")
    entries: list[Any] = [
        {
            "use": "accept",
            "domains": ["example.org", "./domains"],
            "relay-from": ["10.0.0.0/8", "2001:db8::/32", "./networks"],
            "recipients": "map",
            "relay-authenticated": False,
        },
        "accept:./domains,relay-from=10.0.0.0/8,relay-from=./networks,recipients=map",
    ]
    for entry in entries:
        chain = load_handlers([entry], tmp_path)
        chain.prepare()
        names = " ".join(f"{tmp_path}/{name}" for name in ("domains", "networks", "map"))
        assert repr(chain.handlers[0]) == f"<Accept {names}>"
    with pytest.raises(HandlerError, match=f"cannot read {tmp_path}/none: No such file"):
        load_handlers([f"accept:{tmp_path}/none"]).check()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"domains": []}, r"domains \[\]: at least one domain is required"),
        ({"domains": ["example..com"]}, "domains 'example..com': not a domain, as in example.com"),
        ({"domains": [".example.com"]}, "write [*].example.com for the domains below it"),
        ({"domains": ["b.c"], "relay_from": ["10.0.0.1/8"]}, "relay_from '10.0.0.1/8': an address"),
        ({"domains": ["b.c"], "relay_from": ["ten"]}, "relay_from 'ten': not a network"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(options: dict[str, Any], error: str) -> None:
    with pytest.raises(SettingError, match=error):
        Accept(**options)
