"""The limits of failed attempts to authenticate, without sockets and with a test clock."""

from __future__ import annotations

import asyncio
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st
from support.server import until

from smtpd_fork.filters.auth import attempts
from smtpd_fork.filters.auth.attempts import Attempts
from smtpd_fork.filters.auth.failures import LOGIN_REFRESH_SECONDS, LOGIN_SECONDS, Failures
from smtpd_fork.filters.auth.outcome import (
    TOO_MANY_FAILURES,
    USER_HAS_TOO_MANY,
    RefusedError,
)

if TYPE_CHECKING:
    import pytest

    from smtpd_fork.fleet.auth_attempts import AuthCount

ANY = 1000


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def counts(of_client: int = 3, of_user: int = 0) -> tuple[Failures, Clock]:
    clock = Clock()
    return Failures(of_client, of_user, 60.0, clock), clock


async def refused(made: Failures, client: str = "192.0.2.1", user: str = "bob") -> str:
    try:
        async with made.attempt(client, user, at_once=ANY):
            return ""
    except RefusedError as error:
        return error.reply


def test_a_client_cannot_choose_different_guesses_that_count_as_one() -> None:
    client, seen = "192.0.2.1", dict[bytes, bytes]()
    for number in range(10_000):
        guess = b"PLAIN\n\0bob\0%d" % number
        text = b"%d:%b\n%b" % (len(client), client.encode(), guess)
        digest = blake2b(text, digest_size=2).digest()
        if digest in seen:
            break
        seen[digest] = guess
    made, _ = counts(of_client=2)
    assert not made.failed(client, "bob", seen[digest])
    assert made.failed(client, "bob", guess)


class Fleet:
    """The shared counts of all nodes."""

    key = bytes(range(16))

    def __init__(self) -> None:
        self.told: list[tuple[str, bytes, bytes]] = []

    async def share(self, count: AuthCount, name: bytes, attempt: bytes, key: bytes) -> Any:
        await asyncio.sleep(0)
        if key != self.key:
            return self.key, {}
        if attempt:
            self.told.append((count.kind, name, attempt))
        known = {each[2] for each in self.told if each[:2] == (count.kind, name)}
        return key, dict.fromkeys(known, count.seconds)


async def test_all_nodes_hash_guesses_and_names_with_the_key_of_the_first_node() -> None:
    fleet = Fleet()
    made, there = counts(2, 4)[0], counts(2, 4)[0]
    for each in (made, there):
        assert not each.failed("192.0.2.1", "bob", b"guess")
        assert not await each.share("192.0.2.1", "bob", b"guess", fleet.share)
    assert sorted(kind for kind, *_ in fleet.told) == ["client", "client", "user", "user"]
    assert len(set(fleet.told)) == 2
    assert await refused(made) == ""
    assert made.failed("192.0.2.1", "bob", b"another"), "the guess is counted once"


async def test_each_guess_is_counted_if_sessions_get_the_shared_key_concurrently() -> None:
    fleet = Fleet()
    made, _ = counts(of_client=3)
    guesses = [b"1", b"2"]
    for guess in guesses:
        assert not made.failed("192.0.2.1", "", guess)
    await asyncio.gather(*(made.share("192.0.2.1", "", each, fleet.share) for each in guesses))
    assert len(fleet.told) == 2
    assert await refused(made) == ""
    assert made.failed("192.0.2.1", "", b"3")


async def test_a_user_at_the_shared_limit_is_refused_only_to_unknown_clients() -> None:
    fleet = Fleet()
    here, there = counts(0, 2)[0], counts(0, 2)[0]
    await there.succeeded("192.0.2.1", "bob", fleet.share)
    for number, each in enumerate((there, here)):
        client, guess = f"198.51.100.{number}", b"%d" % number
        each.failed(client, "bob", guess)
        await each.share(client, "bob", guess, fleet.share)
    for client, reply in {"192.0.2.7": USER_HAS_TOO_MANY, "192.0.2.1": ""}.items():
        await here.ask_for_login(client, "bob", fleet.share)
        assert await refused(here, client) == reply


async def test_a_log_in_is_shared_once_a_day_and_never_without_a_limit() -> None:
    fleet = Fleet()
    made, clock = counts(0, 2)
    for _ in range(3):
        await made.succeeded("192.0.2.1", "bob", fleet.share)
    assert len(fleet.told) == 1
    clock.now += LOGIN_REFRESH_SECONDS
    await made.succeeded("192.0.2.1", "bob", fleet.share)
    assert len(fleet.told) == 2
    await counts(0, 0)[0].succeeded("192.0.2.1", "bob", fleet.share)
    assert len(fleet.told) == 2


async def test_a_client_at_its_limit_is_refused_until_its_failures_expire() -> None:
    made, clock = counts(3)
    for number in range(3):
        assert await refused(made) == ""
        reached = made.failed("192.0.2.1", "bob", b"%d" % number)
        assert reached == (number == 2)
        clock.now += 10
    assert await refused(made) == TOO_MANY_FAILURES
    assert await refused(made, "192.0.2.2") == ""
    clock.now += 30.1
    assert await refused(made) == ""
    assert made.failed("192.0.2.1", "bob", b"again")
    assert await refused(made) == TOO_MANY_FAILURES


async def test_the_same_wrong_credentials_count_once() -> None:
    made, _ = counts(2)
    for _ in range(5):
        assert not made.failed("192.0.2.1", "bob", b"old password")
    assert await refused(made) == ""
    assert made.failed("192.0.2.1", "bob", b"another")
    assert not made.failed("192.0.2.1", "bob", b"a third")


async def test_a_user_at_the_limit_is_refused_to_clients_that_never_authenticated_as_it() -> None:
    made, clock = counts(0, 2)
    await made.succeeded("192.0.2.1", "bob", None)
    made.failed("198.51.100.1", "bob", b"1")
    made.failed("198.51.100.2", "bob", b"2")
    assert await refused(made, "192.0.2.7") == USER_HAS_TOO_MANY
    assert await refused(made, "192.0.2.1") == ""
    assert await refused(made, "192.0.2.7", "carol") == ""
    assert await refused(made, "192.0.2.7", "") == ""
    clock.now += 61
    assert await refused(made, "192.0.2.7") == ""
    clock.now += LOGIN_SECONDS
    made.failed("198.51.100.1", "bob", b"1")
    made.failed("198.51.100.2", "bob", b"2")
    assert await refused(made, "192.0.2.1") == USER_HAS_TOO_MANY


async def test_0_is_no_limit_and_a_client_without_a_key_is_not_counted() -> None:
    made, _ = counts(0, 0)
    for number in range(100):
        assert not made.failed("192.0.2.1", "bob", b"%d" % number)
    assert await refused(made) == ""
    made, _ = counts(1)
    assert not made.failed("", "bob", b"1")
    assert await refused(made, "") == ""


async def test_concurrent_attempts_cannot_exceed_the_limit() -> None:
    made, _ = counts(3)
    asked = 0
    go = asyncio.Event()

    async def guess(number: int) -> str:
        nonlocal asked
        try:
            async with made.attempt("192.0.2.1", "bob", at_once=ANY):
                asked += 1
                await go.wait()
                made.failed("192.0.2.1", "bob", b"%d" % number)
        except RefusedError as error:
            return error.reply
        return ""

    tasks = [asyncio.create_task(guess(number)) for number in range(20)]
    await until(lambda: asked == 3)
    go.set()
    replies = await asyncio.gather(*tasks)
    assert asked == 3
    assert replies.count("") == 3
    assert replies.count(TOO_MANY_FAILURES) == 17
    assert made._running == {}


async def test_attempts_of_one_client_wait_for_each_other_and_those_of_another_do_not() -> None:
    made, _ = counts(0)
    order: list[str] = []
    go = asyncio.Event()

    async def one(client: str, name: str) -> None:
        async with made.attempt(client, "bob", at_once=1):
            order.append(name)
            await go.wait()

    tasks = [asyncio.create_task(one("192.0.2.1", name)) for name in "abc"]
    tasks.append(asyncio.create_task(one("192.0.2.2", "other")))
    await until(lambda: len(order) == 2)
    tasks[1].cancel()
    go.set()
    await asyncio.wait(tasks)
    assert sorted(order) == ["a", "c", "other"]
    assert made._running == {}


async def test_when_a_woken_waiter_is_cancelled_the_next_one_is_woken() -> None:
    made, _ = counts(0)
    go = asyncio.Event()
    done = []

    async def one(name: str) -> None:
        async with made.attempt("192.0.2.1", "bob", at_once=1):
            await go.wait()
            done.append(name)

    tasks = [asyncio.create_task(one(name)) for name in "abc"]
    await until(lambda: made._running and len(next(iter(made._running.values())).waiters) == 2)
    go.set()
    await asyncio.wait(tasks[:1])
    tasks[1].cancel()  # it may have been woken, but has not run yet
    await asyncio.wait(tasks)
    assert done[0] == "a"
    assert done[-1] == "c"
    assert made._running == {}


async def test_memory_is_bounded_and_the_oldest_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attempts, "MOST_NAMES", 5)
    made, _ = counts(1, 1)
    for number in range(50):
        made.failed(f"192.0.2.{number}", f"user{number}", b"x")
        await made.succeeded(f"192.0.2.{number}", f"user{number}", None)
    assert [len(each) for each in kept(made)] == [5, 5, 5]
    assert await refused(made, "192.0.2.0", "") == ""
    assert await refused(made, "192.0.2.49", "") == TOO_MANY_FAILURES


def kept(made: Failures) -> list[Attempts]:
    return [each for each in vars(made).values() if isinstance(each, Attempts)]


async def test_names_and_credentials_are_neither_stored_nor_shared() -> None:
    made, fleet = counts(3, 3)[0], Fleet()
    client, user, guess = "192.0.2.1", "bob@example.com", b"\0bob@example.com\0open sesame"
    made.failed(client, user, guess)
    await made.share(client, user, guess, fleet.share)
    await made.succeeded(client, user, fleet.share)
    seen = repr([vars(each) for each in kept(made)]) + repr(fleet.told)
    for word in (client, "bob", "sesame"):
        assert word not in seen


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 40)), max_size=60))
def test_no_client_guesses_more_often_than_its_limit_in_any_period(
    attempts: list[tuple[int, int, int]],
) -> None:
    made, clock = counts(2)
    guessed: dict[int, list[tuple[float, int]]] = {}

    async def go() -> None:
        for client, guess, later in attempts:
            clock.now += later
            if await refused(made, str(client), ""):
                continue
            made.failed(str(client), "", b"%d" % guess)
            guessed.setdefault(client, []).append((clock.now, guess))

    asyncio.run(go())
    for of_one in guessed.values():
        for at, _ in of_one:
            within = {guess for when, guess in of_one if at - 60 < when <= at}
            assert len(within) <= 2
