"""Processes know whether another process of any supervisor has a free slot."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

from hypothesis import given
from hypothesis import strategies as st

from smtpd_fork.supervisor.free_slots import FreeSlotElsewhere, FullProcesses


class Notified:
    """A process or another supervisor, which records its last notification of each kind."""

    def __init__(self) -> None:
        self.last: dict[str, bool] = {}

    def notify(self, kind: str, body: bool) -> None:
        self.last[kind] = body


events = st.lists(
    st.tuples(st.sampled_from(["full", "free", "drains"]), st.integers(0, 3)), max_size=20
)


@given(events)
def test_all_processes_know_whether_one_that_accepts_has_a_free_slot(some: list[Any]) -> None:
    """Two supervisors with two processes each: each process knows of those of both."""
    processes = [Notified() for _ in range(4)]
    free, accept = [True] * 4, [True] * 4
    supervisors: Any = [FullProcesses(), FullProcesses()]
    others = [Notified(), Notified()]

    def announce() -> None:
        for _ in range(2):  # one notification may cause one of the other supervisor
            for number, supervisor in enumerate(supervisors):
                own = range(2 * number, 2 * number + 2)
                accepting = [processes[n] for n in own if accept[n]]
                supervisor.announce([processes[n] for n in own], accepting, [others[number]])
                supervisors[1 - number].set_full(
                    others[1 - number], full=others[number].last["full"]
                )

    for number, supervisor in enumerate(supervisors):
        supervisor.add_supervisor(others[number])
        supervisor.notify_supervisor(others[number])
    announce()
    for event, number in some:
        if event == "drains":
            accept[number] = False
        else:
            free[number] = event == "free"
            supervisors[number // 2].set_full(processes[number], full=not free[number])
        announce()
    expected = any(f and a for f, a in zip(free, accept, strict=True))
    assert {process.last.get("elsewhere", True) for process in processes} == {expected}


def test_a_process_that_is_full_again_leaves_clients_until_the_supervisor_has_answered_again() -> (
    None
):
    channel, server = Mock(), Mock()
    elsewhere = FreeSlotElsewhere(channel, server)
    (slot_elsewhere,) = server.leave_clients.call_args.args
    for _ in range(2):
        assert slot_elsewhere()
        channel.notify.assert_called_once_with("full", True)
        elsewhere.set_free(free=False)
        assert not slot_elsewhere()
        channel.notify.reset_mock()
        (on_free_slot,) = server.gate.when_room.call_args.args
        on_free_slot()
        channel.notify.assert_called_once_with("full", False)
        channel.notify.reset_mock()
