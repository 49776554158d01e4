"""Unused connections are kept for some seconds, in the order of their last use."""

from __future__ import annotations

from smtpd_fork.hops.idle import Idle


async def test_unused_connections_are_closed_when_their_time_has_expired() -> None:
    ended: list[str] = []
    idle = Idle(60, ended.append)
    for name in ("a", "b", "c"):
        idle.add(name)
    assert idle.take() == "c"  # the most recently used one
    idle.discard("a")
    idle.add("a")
    idle._since["b"] -= 61
    idle._end_expired()
    assert (ended, len(idle)) == (["b"], 1)
    idle._since["a"] -= 61
    idle._end_expired()
    assert (ended, len(idle)) == (["b", "a"], 0)
    assert idle._timer is None
    assert idle.take() is None


async def test_end_first_closes_the_oldest_and_end_all_leaves_no_timer() -> None:
    ended: list[str] = []
    idle = Idle(60, ended.append)
    for name in ("a", "b", "c"):
        idle.add(name)
    idle.end_first()
    assert (ended, len(idle)) == (["a"], 2)
    idle.end_all()
    assert (ended, len(idle)) == (["a", "b", "c"], 0)
    assert idle._timer is None
    idle.discard("a")
