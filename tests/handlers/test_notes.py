"""Notes, scores and tags, which handlers of a chain share, and conditions on them."""

from __future__ import annotations

import math
import smtplib
from typing import TYPE_CHECKING, Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import MISSING, Envelope
from aiosmtpd.smtp import Session as StockSession
from handlers.test_routes import Verifies
from support.ports import free_port
from support.server import greeted
from support.sinks import Keeps, send

import smtpd_fork
from smtpd_fork import Mail, Route, SettingError, Sink, add_score, add_tag, marks_of, notes_of
from smtpd_fork.cli.control.output import explanation_lines
from smtpd_fork.cli.control.replies import Explanation, Rejection
from smtpd_fork.filters import Accept
from smtpd_fork.handlers import Chain
from smtpd_fork.handlers.when import When
from smtpd_fork.sinks import Discard

if TYPE_CHECKING:
    from support.tls import Certificates

ENVELOPES = [Envelope, smtpd_fork.Envelope]


class Marks:
    """Marks each message by its words, ``tag:WORD`` and ``score:N``, and its client by EHLO."""

    async def handle_EHLO(
        self, server: Any, session: Any, envelope: Any, name: str, replies: list[str]
    ) -> list[str]:
        session.host_name = name
        mark(session, name)
        return replies

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> Any:
        mark(envelope, envelope.content.decode())
        return MISSING


def mark(marked: Any, text: str) -> None:
    for word in text.split():
        name, colon, value = word.partition(":")
        if colon and name == "tag":
            add_tag(marked, value)
        elif colon and name == "score":
            add_score(marked, float(value))


def said(words: str) -> str:
    return f"Subject: hello\r\n\r\n{words}\r\n"


# -- notes, scores and tags --------------------------------------------------------------------


@pytest.mark.parametrize("kind", ENVELOPES)
def test_scores_are_added_up_and_tags_are_a_set(kind: type[Envelope]) -> None:
    envelope, session = kind(), StockSession(None)  # type: ignore[arg-type] # no loop is needed
    assert marks_of(session, envelope) == (0.0, frozenset())
    assert add_score(envelope, 2) == 2.0
    assert add_score(envelope, -0.5) == 1.5
    add_score(session, 1)
    for tag in ("spam", "spam", "R_SPF_FAIL"):
        add_tag(envelope, tag)
    add_tag(session, "no-rdns")
    score, tags = marks_of(session, envelope)
    assert score == 2.5
    assert tags == {"spam", "R_SPF_FAIL", "no-rdns"}
    assert marks_of(kind()) == (0.0, frozenset())


@pytest.mark.parametrize("kind", ENVELOPES)
def test_notes_are_a_dict_that_is_created_when_needed(kind: type[Envelope]) -> None:
    envelope = kind()
    notes_of(envelope)["seen"] = 1
    assert notes_of(envelope) is envelope.notes  # type: ignore[attr-defined] # aiosmtpd's has it now
    assert envelope.notes == {"seen": 1}  # type: ignore[attr-defined] # as above
    assert notes_of(kind()) == {}


@pytest.mark.parametrize("tag", ["", "two words", "a,b", "a\r\nb", "ü", "x" * 65, None, 5])
def test_an_invalid_tag_is_an_error(tag: Any) -> None:
    envelope = Envelope()
    with pytest.raises(ValueError, match="a tag has 1 to 64 letters"):
        add_tag(envelope, tag)
    assert not marks_of(envelope).tags


def test_tags_and_scores_are_limited() -> None:
    envelope = Envelope()
    for number in range(100):
        add_tag(envelope, f"tag-{number}")
    add_tag(envelope, "tag-7")
    with pytest.raises(ValueError, match="there are 100 tags already"):
        add_tag(envelope, "one-more")
    for points in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="not a finite number"):
            add_score(envelope, points)
    add_score(envelope, 1.7e308)
    with pytest.raises(ValueError, match="not a finite number"):
        add_score(envelope, 1.7e308)
    assert marks_of(envelope).score == 1.7e308


async def test_notes_of_a_message_end_with_its_transaction_and_those_of_a_client_stay() -> None:
    found: list[Any] = []

    class Counts:
        async def handle_MAIL(
            self, server: Any, session: Any, envelope: Any, address: str, options: list[str]
        ) -> Any:
            for noted in (session, envelope):
                noted.notes["mails"] = noted.notes.get("mails", 0) + 1
                add_score(noted, 1)
            found.append((session.notes["mails"], envelope.notes["mails"], marks_of(envelope)[0]))
            return "550 5.7.1 No" if address.startswith("no@") else MISSING

    async with greeted([Counts(), Discard()]) as client:
        for command in ("MAIL FROM:<no@b.example>", "MAIL FROM:<a@b.example>", "RSET"):
            await client.say(command)
        await send(client, "x@a.example")
        await client.say("MAIL FROM:<a@b.example>")
        await client.say("EHLO again.example")
        await client.say("MAIL FROM:<a@b.example>")
    assert found == [(number, 1, 1.0) for number in range(1, 6)]


# -- conditions --------------------------------------------------------------------------------


async def test_a_sink_takes_the_messages_with_a_tag_and_the_next_one_takes_the_others() -> None:
    spam, rest = Keeps(), Keeps()
    async with greeted([Marks(), Route(spam, when={"tag": ["spam", "virus"]}), rest]) as client:
        for words in ("tag:spam", "tag:ham score:9.5", "tag:virus tag:ham"):
            assert (await send(client, "x@a.example", body=said(words)))[-1].startswith("250")
    assert [sorted(each.tags) for each in spam.mails] == [["spam"], ["ham", "virus"]]
    assert [each.score for each in rest.mails] == [9.5]


async def test_a_filter_is_called_according_to_earlier_marks() -> None:
    class Refuses:
        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
            return "554 5.7.1 Spam"

    when = {"score-at-least": 5, "without-tag": "trusted"}
    async with greeted([Marks(), Route(Refuses(), when=when), Discard()]) as client:
        for words, reply in {
            "score:4.9": "250",
            "score:5": "554",
            "score:2.5 score:2.5": "554",
            "score:9 tag:trusted": "250",
            "score:9 score:-5": "250",
        }.items():
            assert (await send(client, "x@a.example", body=said(words)))[-1][:3] == reply, words


async def test_marks_of_a_client_apply_to_all_its_messages() -> None:
    low, high = Keeps(), Keeps()
    async with greeted([Marks(), Route(low, when={"score-below": 3}), high]) as client:
        await client.say("EHLO score:1.5")
        await send(client, "x@a.example", body=said("score:1"))
        await send(client, "x@a.example", body=said("score:1.5"))
    assert [each.score for each in low.mails] == [2.5]
    assert [each.score for each in high.mails] == [3.0]


async def test_at_rcpt_the_sink_is_called_that_matches_the_present_marks() -> None:
    spam = Keeps()
    routes = [Marks(), Route(spam, when={"tag": "spam"}), Verifies()]
    async with greeted(routes) as client:
        await client.say("MAIL FROM:<a@example.org>")
        assert (await client.say("RCPT TO:<new@a.example>")).code == 550
        assert (await client.say("RCPT TO:<known@a.example>")).code == 250
        await client.say("EHLO tag:spam")
        await client.say("MAIL FROM:<a@example.org>")
        assert (await client.say("RCPT TO:<new@a.example>")).code == 250


async def test_a_recipient_is_accepted_if_the_only_sink_for_it_depends_on_a_tag() -> None:
    spam = Keeps()
    async with greeted([Marks(), Route(spam, when={"tag": "spam"})]) as client:
        accepted, refused = await send(client, "x@a.example")
        assert (accepted[:3], refused[:9]) == ("250", "550 5.1.1")
        assert (await send(client, "x@a.example", body=said("tag:spam")))[-1].startswith("250")
    assert len(spam.got) == 1


async def test_a_handler_that_adds_no_tag_at_all_gets_451_for_its_message() -> None:
    async with greeted([Marks(), Discard()]) as client:
        assert (await send(client, "x@a.example", body=said("tag:a,b")))[-1].startswith("451 4.3.0")


# -- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tag", "a b"),
        ("tag", 5),
        ("without-tag", [""]),
        ("score-at-least", "many"),
        ("score-at-least", True),
        ("score-below", math.nan),
        ("score-below", "inf"),
        ("score", 5),
    ],
)
def test_a_condition_that_no_message_can_match_is_an_error(key: str, value: Any) -> None:
    with pytest.raises(SettingError, match=rf"when\.{key}"):
        When.of({key: value})


def test_scores_may_be_text() -> None:
    assert When.of({"score-at-least": "6.5", "tag": "a,b"}) == When(
        score_at_least=6.5, tag=("a", "b")
    )


@pytest.mark.parametrize("when", [{"tag": "spam"}, {"score-at-least": 5}])
def test_a_condition_on_marks_that_no_handler_sets_is_a_warning(when: dict[str, Any]) -> None:
    in_vain, rest = Route(Keeps(), when=when), Discard()
    doubt = "keeps is never called: no handler sets the score or tag of its when"
    assert list(Chain([Accept(["a.example"]), in_vain, rest]).warnings) == [doubt]
    assert not Chain([Marks(), in_vain, rest]).warnings
    always = Route(Keeps(), when={"without-tag": "spam", "score-below": 5})
    assert not Chain([always, rest]).warnings


def test_a_sink_for_spam_only_is_not_a_sink_for_a_domain() -> None:
    spam = Route(Keeps(), when={"tag": "spam"})
    rest = Route(Keeps(), recipients=["a.example"])
    found = Chain([Accept(["a.example", "b.example"]), Marks(), spam, rest]).warnings
    assert list(found) == ["no sink takes mail for b.example, which accept accepts: it gets 550"]


# -- the log, and other servers ----------------------------------------------------------------


async def test_the_log_and_explain_show_the_marks_of_what_was_rejected(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "smtpd_fork.session")
    routes = [Marks(), Keeps("554 5.7.1 No")]
    async with greeted(routes) as client:
        await send(client, "x@a.example", body=said("score:6.5 tag:spam tag:bulk"))
    (record,) = [each for each in caplog.records if "rejected DATA" in each.getMessage()]
    assert record.getMessage().endswith("helo=<client.example> score=6.5 tags=bulk,spam")
    assert (record.score, record.tags) == (6.5, "bulk,spam")  # type: ignore[attr-defined] # extra
    facts = {
        name: vars(record)[name] for name in Rejection.__struct_fields__ if name in vars(record)
    }
    facts |= {"client": "127.0.0.1", "orig_client": "192.0.2.7"}
    lines = list(explanation_lines(Explanation("caf579-1", rejections=[Rejection(**facts)])))
    assert lines[-3:] == ["score    6.5", "tags     bulk,spam", "origin   192.0.2.7"]


def test_filters_and_sinks_share_marks_under_aiosmtpd() -> None:
    mails: list[Mail] = []

    class Spam(Sink):
        async def deliver(self, mail: Mail) -> str:
            mails.append(mail)
            return "250 2.0.0 Ok: spam"

    port = free_port("127.0.0.1")
    chain = Chain([Marks(), Route(Spam(), when={"tag": "spam"}), Discard()])
    controller = Controller(chain, "127.0.0.1", port)
    controller.start()
    try:
        with smtplib.SMTP("127.0.0.1", port) as client:
            client.ehlo("score:1")
            for words in ("score:2 tag:spam", "score:2"):
                client.mail("a@example.org")
                client.rcpt("b@example.com")
                client.data(said(words))
    finally:
        controller.stop()
    assert [(each.score, set(each.tags)) for each in mails] == [(3.0, {"spam"})]


async def test_notes_of_a_client_remain_after_starttls(certificates: Certificates) -> None:
    kept = Keeps()
    async with greeted([Marks(), kept], tls_context=certificates.server) as client:
        await client.say("EHLO tag:early")
        await client.start_tls(certificates.client)
        await client.say("EHLO tag:late")
        await send(client, "x@a.example")
    assert kept.mails[0].tags == {"early", "late"}
