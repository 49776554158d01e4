"""A dialogue without a socket, an event loop or a clock; handlers run immediately."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from smtpd_fork.dialogue.commands import State
from smtpd_fork.dialogue.dialogue import Dialogue
from smtpd_fork.dialogue.session import Session
from smtpd_fork.dialogue.trusted_commands import trusted_commands
from smtpd_fork.dialogue.waiting import Ask, Failed
from smtpd_fork.smtp.hooks import ask
from smtpd_fork.smtp.work import PROCEDURES

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

    from smtpd_fork.dialogue import Shared
    from smtpd_fork.dialogue.waiting import Waiting
    from smtpd_fork.peer_address import Peer

LOCAL_ERROR = b"451 4.3.0 Local error in processing, try again later\r\n"


class Outcome(NamedTuple):
    """The result of a stream: the replies, and whether the session has ended."""

    sent: bytes
    over: bool


class Waiter:
    """Waits until a result is set, by yielding to the code that drives the coroutine."""

    def __init__(self) -> None:
        self._event: Any = None

    def set_result(self, event: Any, /) -> None:
        self._event = event

    def done(self) -> bool:
        return self._event is not None

    def cancel(self) -> None:
        raise AssertionError("nothing is cancelled here")

    def __await__(self) -> Generator[None, None, Any]:
        while self._event is None:
            yield
        return self._event


class Offline:
    """Runs one dialogue, as a connection does.

    :param shared: the state that it shares with other dialogues
    :param peer: the client
    """

    loop: Any = None
    gone = False
    owner = transport = proxied = host_name_dns = None

    def __init__(self, shared: Shared, peer: Peer = ("192.0.2.1", 25)) -> None:
        self.shared = shared
        self.peer = peer
        self.work = None
        self.sent = b""
        self._running: Coroutine[Any, Any, None] | None = None
        self.dialogue = Dialogue(shared, "id", self)
        self.dialogue.begin(Session(None, "id"))
        self.dialogue.may_send = trusted_commands(shared.trusted, peer)
        self.dialogue.greet()

    @property
    def server(self) -> Any:
        return self.dialogue.server

    def is_end(self, error: BaseException) -> bool:
        return False

    @property
    def outcome(self) -> Outcome:
        """The result so far."""
        return Outcome(self.sent, self.dialogue.state >= State.LEAVING)

    def feed(self, data: bytes) -> None:
        """Feed bytes of the client to the dialogue, and execute what it waits for."""
        self.dialogue.receive(data)
        self._carry_on()
        self.flush()

    def _carry_on(self) -> None:
        dialogue = self.dialogue
        while True:
            if self._running is None and dialogue.waiting is not None:
                self._running = self._carry_out(dialogue.waiting)
            elif self._running is None and not dialogue.more:
                return
            if self._running is not None:
                try:
                    self._running.send(None)
                except StopIteration:
                    self._running = None
                    dialogue.answered()
                else:
                    if dialogue.awaited is not None and not dialogue.awaited.done():
                        return
                    continue
            dialogue.advance()

    async def _carry_out(self, waiting: Waiting) -> None:
        try:
            if isinstance(waiting, Ask):
                answer = await ask(self, waiting.hook, *waiting.args)  # type: ignore[arg-type]  # too
                self.dialogue.act(self.dialogue.answer(waiting, answer))
            elif not isinstance(waiting, Failed):
                await PROCEDURES[waiting.step](self, *waiting.args)
            else:
                self.dialogue.put(LOCAL_ERROR)
        except Exception:  # noqa: BLE001 - a handler may raise any exception
            self.dialogue.put(LOCAL_ERROR)

    # -- methods that a dialogue calls -------------------------------------------------------------

    def ask_now(self, ask: Ask) -> Any:
        hook = self.shared.hooks[ask.hook]
        coroutine = hook(self.server, self.dialogue.session, self.dialogue.envelope, *ask.args)
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("it waits")

    def refuse_handshake(self) -> str | None:
        return None

    def wait_for_client(self) -> None:
        pass

    wait_for_command = wait_for_client

    def new_waiter(self) -> Waiter:
        return Waiter()

    def unsent(self) -> int:
        return 0

    def end_for_memory(self, held: int) -> bool:
        return False

    def flush(self) -> None:
        self.sent += self.dialogue.out
        self.dialogue.out = b""

    async def drained(self) -> None:
        pass
