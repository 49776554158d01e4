"""Whether another process has a free slot, over all supervisors of an upgrade."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

from hypothesis import given
from hypothesis import strategies as st

from smtpd_fork.supervisor.elsewhere import Elsewhere, FullProcesses


class Told:
    """A process, or another supervisor: what it was told last, by word."""

    def __init__(self) -> None:
        self.words: dict[str, bool] = {}

    def notify(self, word: str, body: bool) -> None:
        self.words[word] = body


events = st.lists(
    st.tuples(st.sampled_from(["full", "free", "rests"]), st.integers(0, 3)), max_size=20
)


@given(events)
def test_all_know_whether_a_process_that_accepts_has_a_free_slot(some: list[Any]) -> None:
    """Two supervisors with two processes each: each process knows of those of both."""
    processes = [Told() for _ in range(4)]
    free, accept = [True] * 4, [True] * 4
    sides: Any = [FullProcesses(), FullProcesses()]
    others = [Told(), Told()]

    def tell() -> None:
        for _ in range(2):  # what one says of itself changes what the other one says
            for number, side in enumerate(sides):
                own = range(2 * number, 2 * number + 2)
                accepting = [processes[n] for n in own if accept[n]]
                side.tell([processes[n] for n in own], accepting, [others[number]])
                sides[1 - number].note(others[1 - number], full=others[number].words["full"])

    for number, side in enumerate(sides):
        side.introduce(others[number])
    tell()
    for event, number in some:
        if event == "rests":
            accept[number] = False
        else:
            free[number] = event == "free"
            sides[number // 2].note(processes[number], full=not free[number])
        tell()
    expected = any(f and a for f, a in zip(free, accept, strict=True))
    assert {process.words.get("elsewhere", True) for process in processes} == {expected}


def test_a_process_that_is_full_again_leaves_clients_until_the_supervisor_has_answered_again() -> (
    None
):
    line, server = Mock(), Mock()
    elsewhere = Elsewhere(line, server)
    (slot_elsewhere,) = server.leave_clients.call_args.args
    for _ in range(2):
        assert slot_elsewhere()
        line.notify.assert_called_once_with("full", True)
        elsewhere.changed(free=False)
        assert not slot_elsewhere()
        line.notify.reset_mock()
        (on_free_slot,) = server.gate.when_room.call_args.args
        on_free_slot()
        line.notify.assert_called_once_with("full", False)
        line.notify.reset_mock()
