"""Handover of other sockets than those for mail: of systemd, the control socket, and metrics."""

from __future__ import annotations

import json
import os
import socket
import threading
import urllib.request
from typing import TYPE_CHECKING

import msgspec
import pytest
from support.daemon import (
    COMMAND,
    LOCAL,
    PATIENCE,
    Daemon,
    on_both_loops,
    run,
    until,
)
from support.manager import Manager
from support.peers import peer, proc
from support.ports import free_ports
from support.upgrades import Successors

from smtpd_fork import Server
from smtpd_fork.cli.startup_resources import StartupResources
from smtpd_fork.daemon import Handover, Invocation, Successor
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from pathlib import Path


def test_the_old_process_notifies_the_manager_of_the_new_one(tmp_path: Path) -> None:
    address = str(tmp_path / "notify.sock")
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "500000"}
    with Manager(address) as manager:
        with Daemon(*LOCAL, cwd=tmp_path, environment=environment) as daemon:
            manager.wait_for_field("READY")
            with Successors(daemon) as successors:
                new = successors.upgrade()
                assert int(manager.wait_for_field("MAINPID")["MAINPID"]) == new
                # systemd waits only for the end of its own children.
                assert int(proc(new, "stat").read_text().split()[3]) != daemon.process.pid
                manager.wait_for_field("READY")
                assert daemon.process.wait(PATIENCE) == 0
                manager.wait_for_field("WATCHDOG")  # of the new process
            manager.wait_for_field("STOPPING")
    assert sum("STOPPING" in message for message in manager.messages) == 1


def test_sockets_of_systemd_are_handed_over(tmp_path: Path) -> None:
    plain, lmtp = free_ports(2)
    activate = [
        *(peer("systemd-socket-activate"), "--fdname", "smtp:lmtp", "-E", "PATH"),
        *("-l", f"127.0.0.1:{plain}", "-l", f"127.0.0.1:{lmtp}", *COMMAND),
    ]
    client = threading.Thread(target=until, args=(lambda: is_served(plain), "systemd listens"))
    client.start()
    with (
        Daemon("--handler", "discard", cwd=tmp_path, command=activate) as daemon,
        Successors(daemon) as successors,
    ):
        client.join(PATIENCE)
        places = daemon.places
        for _ in range(2):
            successors.upgrade()
        assert daemon.places == places * 3
        daemon.deliver()


def is_served(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
    except ConnectionRefusedError:
        return False
    return True


def test_sockets_of_services_are_claimed_by_name_and_others_are_closed(tmp_path: Path) -> None:
    wanted, unwanted = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    port = wanted.getsockname()[1]
    server = Server(Discard(), listen=["127.0.0.1:0"])
    old = StartupResources(Invocation.current())
    handover = old.handover(server, {"a": wanted, "b": unwanted}, 2, 2, None)
    text = handover.text()
    left = msgspec.json.decode(text, type=Handover)
    assert left == handover
    ours, other = socket.socketpair()
    new = StartupResources(Invocation.current(), successor=Successor(left, ours))
    claimed = new.claim("a")
    assert claimed is not None
    assert claimed.getsockname()[1] == port
    assert new.claim("a") is None
    assert old.claim("a") is None
    new.own_inherited()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(unwanted.detach())
    wanted.detach()
    for sock in (claimed, ours, other):
        sock.close()


@on_both_loops
def test_the_new_process_answers_control_and_metrics_at_the_same_addresses(
    tmp_path: Path, loop: str
) -> None:
    control = tmp_path / "control.sock"
    (port,) = free_ports(1)
    page = f"http://127.0.0.1:{port}/status.json"
    options = ("--control", str(control), "--metrics", f"127.0.0.1:{port}", "--loop", loop)

    def pid_by_control() -> int:
        ended = run("status", "--json", "--control", str(control), cwd=tmp_path)
        assert ended.returncode == 0, ended.stderr
        return int(json.loads(ended.stdout)["pid"])

    with Daemon(*LOCAL, *options, cwd=tmp_path) as daemon, Successors(daemon) as successors:
        inode = control.stat().st_ino
        assert pid_by_control() == daemon.process.pid
        with daemon.smtp() as inside:  # so that the old process stays
            for _ in range(2):
                new = successors.upgrade()
                assert pid_by_control() == new
                with urllib.request.urlopen(page, timeout=PATIENCE) as answer:
                    assert answer.status == 200
            assert inside.noop()[0] == 250
        assert control.stat().st_ino == inode
    until(lambda: not control.exists(), "the last process removes the path")
