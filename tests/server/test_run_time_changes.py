"""Changes while a server runs: limits, denied networks, and all settings by a reload."""

from __future__ import annotations

import smtplib
from typing import TYPE_CHECKING, Any

import pytest
from support.client import Client
from support.handlers import Collect
from support.server import serve

from smtpd_fork import Config, Limits, Server, SettingError, SmtpdForkError, ThreadedServer

if TYPE_CHECKING:
    from pathlib import Path


async def code(server: Server) -> int:
    async with await Client.to(server.addresses[0]) as client:
        return (await client.reply()).code


async def test_a_server_denies_a_network_and_admits_it_again_over_a_reload() -> None:
    async with serve(Collect()) as server:
        async with await Client.to(server.addresses[0]) as inside:
            await inside.greet()
            server.deny("127.0.0.0/8", "Go away")
            assert await code(server) == 554
            await server.reload()
            assert await code(server) == 554
            assert (await inside.say("NOOP")).code == 250, "a session that exists goes on"
        assert server.undeny("127.0.0.0/8")
        assert not server.undeny("127.0.0.0/8")
        assert await code(server) == 220


def test_a_server_in_a_thread_denies_a_network_and_admits_it_again() -> None:
    with ThreadedServer(Collect(), listen="127.0.0.1:0") as server:
        server.deny("127.0.0.1", "Go away", seconds=3600)
        with pytest.raises(smtplib.SMTPConnectError, match="554"):
            smtplib.SMTP("127.0.0.1", server.port)
        assert server.undeny("127.0.0.1")
        smtplib.SMTP("127.0.0.1", server.port).close()


async def test_changed_limits_apply_until_a_reload_and_others_keep_their_state() -> None:
    async with serve(Collect(), rate="2/h", max_from_ip=2, deny="192.0.2.1") as server:
        assert await code(server) == 220
        assert await server.set_limits(max_from_ip=9, exempt=["192.0.2.7"]) == ""
        assert server.changed_limits == {"max_from_ip": 9, "exempt": ("192.0.2.7",)}
        assert server.gate.limits.max_from_ip == 9
        assert server.gate.limits.deny is not None
        assert await code(server) == 220
        assert await code(server) == 421, "the rate has counted on"
        assert await server.reload() == ["max_from_ip 9 -> 2", "exempt +0 -1 networks"]
        assert server.changed_limits == {}
        await server.set_limits(rate=())
        assert await code(server) == 220
        server.gate.limits = Limits()
        assert server.changed_limits == {}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"deny": "192.0.2.1"}, r"or deny\(\) of a Server, adds to them"),
        ({"max_loop_lag": 5}, "not a limit that can be changed at run time; these are allow, "),
        ({"timeout": 5}, "not a limit that can be changed at run time"),
        ({"rates": "5/m"}, "not a limit that can be changed at run time"),
        ({"max_from_ip": 9, "rate": "x"}, "rate 'x': write N/PERIOD"),
        ({"max_from_ip": 9, "reserve": 9}, "needs --exempt"),
    ],
)
async def test_an_invalid_limit_changes_nothing(settings: dict[str, Any], says: str) -> None:
    async with serve(Collect(), max_from_ip=2) as server:
        with pytest.raises(SettingError, match=says):
            await server.set_limits(**settings)
        assert server.gate.limits.max_from_ip == 2


async def test_a_reload_returns_a_line_for_each_setting_that_it_changes(tmp_path: Path) -> None:
    listed = tmp_path / "some.list"
    listed.write_text("192.0.2.1\n")
    settings: dict[str, Any] = {"listen": "127.0.0.1:0", "hostname": "x", "shutdown_timeout": 5}
    settings |= {"deny": str(listed), "probe_from": str(listed)}
    async with serve(Collect(), **settings) as server:
        assert await server.reload() == []
        listed.write_text("192.0.2.2\n192.0.2.3\n")
        assert await server.reload() == ["deny +2 -1 networks", "probe_from +2 -1 networks"]
        config = Config.build({**settings, "timeout": "1m", "max_from_ip": 3, "strict_paths": True})
        assert await server.reload(config) == [
            "max_from_ip 50 -> 3", "timeout 300 -> 60", "strict_paths no -> yes"
        ]  # fmt: skip
        listed.write_text("nonsense\n")
        with pytest.raises(SmtpdForkError, match=r"some\.list, line 1"):
            await server.reload(Config.build({**settings, "max_from_ip": 4}))
        assert server.gate.limits.max_from_ip == 3


def test_other_threads_can_reload_a_server_in_a_thread_and_set_its_limits() -> None:
    class Reloads(Collect):
        error = ""

        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            with pytest.raises(RuntimeError) as caught:
                own.reload()
            self.error = str(caught.value)
            return "250 Ok"

    handler = Reloads()
    own = ThreadedServer(handler, listen="127.0.0.1:0", max_from_ip=2)
    with pytest.raises(RuntimeError, match="does not run"):
        own.reload()
    with own:
        assert own.set_limits(max_from_ip=1) == ""
        assert own.limits.max_from_ip == 1
        assert own.reload() == ["max_from_ip 1 -> 2"]
        with pytest.raises(SettingError, match="rate 'x'"):
            own.set_limits(rate="x")
        with smtplib.SMTP("127.0.0.1", own.port) as client:
            client.sendmail("a@example.org", ["b@example.com"], "Subject: x\r\n")
        assert "waits for the handler's own thread" in handler.error
    with pytest.raises(RuntimeError, match="does not run"):
        own.set_limits(max_from_ip=1)
