"""The status page, also in a real browser, light and dark, with hostile names of clients.

The browser is Chromium, headless; playwright drives it.
"""

from __future__ import annotations

import re
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from support.daemon import Daemon
from support.dialogue import connect

from smtpd_fork.dialogue.tally import OUTCOMES
from smtpd_fork.gate import Entry
from smtpd_fork.listeners.backlog import Backlog
from smtpd_fork.observe.refusal_chart import COLOURS, bars, leading
from smtpd_fork.observe.snapshot import PHASES, Snapshot
from smtpd_fork.observe.status_page import POLICY, STYLE, as_json, render

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser
    from playwright.sync_api import Page as BrowserPage

HOSTILE = "<script>document.title='owned'</script><img/src=x/onerror=document.title='owned'>\"'&"


def entry(**more: Any) -> Entry:
    values: dict[str, Any] = {
        "id": "abc-1",
        "since": 1.0,
        "peer": ("192.0.2.7", 4711),
        "sender": None,
        "key": "192.0.2.7",
        "exempt": False,
        "seconds": 61.5,
        "listener": "127.0.0.1:25",
        "phase": "command",
        "tls": True,
        "messages": 3,
        "helo": "client.example",
    }
    return Entry(**{**values, **more})


SNAPSHOT = Snapshot(
    at=1_700_000_000.0,
    uptime=3_700.0,
    state="serving",
    limit=1000,
    phases={**dict.fromkeys(PHASES, 0), "command": 1},
    stats={"admitted": 5, "refused": 9, "refused_deny": 7, "refused_rate": 2},
    messages=dict.fromkeys(OUTCOMES, 0) | {"accepted": 12, "rejected": 3, "deferred": 1},
    rejections={"handler": 30, "syntax": 11},
    denied=0,
    minutes=[{}] * 58 + [{"deny": 4}, {"deny": 1, "rate": 2}],
    oldest=[entry()],
    clients=1,
    top=[("192.0.2.7", 1)],
    queues=[("127.0.0.1:25", Backlog(2, 100)), ("unix:/run/x", None)],
    lag=0.002,
    zones={},
    sinks=[],
    filters=[],
    fleet=None,
)


class Text(HTMLParser):
    """The text of a page, and its tags."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        assert not any(name.startswith("on") or name == "style" for name, _ in attrs)

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def test_the_page_shows_the_state() -> None:
    text = " ".join(Text(render(SNAPSHOT, "mx.example.com")).text.split())
    for words in (
        "mx.example.com",
        "serving for 1 h 1 min, smtpd-fork",
        "event-loop lag 2 ms",
        "1 of 1000 sessions, from 1 client; 5 admitted, 9 refused since the start",
        "deny 5 7",
        "rate 2 2",
        "127.0.0.1:25 2 100",
        "unix:/run/x ? ?",
        "abc-1 192.0.2.7:4711 client.example 127.0.0.1:25 command yes 3 1 min 1 s",
    ):
        assert words in text
    assert "more session" not in text


def test_sessions_that_are_not_listed_are_counted() -> None:
    snapshot = replace(SNAPSHOT, phases={**SNAPSHOT.phases, "data": 41})
    assert "and 41 more sessions" in Text(render(snapshot, "h")).text


def test_the_page_of_a_server_without_sessions_is_complete() -> None:
    snapshot = replace(
        SNAPSHOT,
        phases=dict.fromkeys(PHASES, 0),
        stats={"admitted": 0, "refused": 0},
        minutes=[{}] * 60,
        oldest=[],
        top=[],
        queues=[],
    )
    text = Text(render(snapshot, "h")).text
    assert text.count("no sessions") == 3
    assert "no refusals" in text


@pytest.mark.parametrize(
    "hostile",
    [
        {"helo": HOSTILE},
        {"peer": (HOSTILE, 25)},
        {"sender": (HOSTILE, 25)},
        {"id": HOSTILE},
        {"listener": HOSTILE},
        {"helo": "\udcff\ud800\0"},
        {"helo": "x" * 100_000},
    ],
)
def test_text_chosen_by_clients_is_escaped(hostile: dict[str, Any]) -> None:
    page = render(replace(SNAPSHOT, oldest=[entry(**hostile)]), "h")
    assert Text(page).tags == Text(render(SNAPSHOT, "h")).tags
    assert len(page) < 20_000
    told = msgspec.json.decode(as_json(replace(SNAPSHOT, oldest=[entry(**hostile)]), "h"))
    assert told["oldest_sessions"][0]["state"] == "command"


def test_names_of_clients_rules_and_hosts_are_escaped() -> None:
    snapshot = replace(
        SNAPSHOT,
        top=[(HOSTILE, 1)],
        minutes=[{HOSTILE: 5}],
        stats={**SNAPSHOT.stats, f"refused_{HOSTILE}": 5},
        queues=[(HOSTILE, None)],
    )
    assert not set(Text(render(snapshot, HOSTILE)).tags) & {"script", "img"}


def test_the_policy_allows_only_the_style_of_the_page() -> None:
    assert render(SNAPSHOT, "h").decode().count(f"<style>{STYLE}</style>") == 1
    assert re.fullmatch(
        r"default-src 'none'; style-src 'sha256-[\w+/]+='; img-src data:; "
        r"frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
        POLICY,
    )


# -- the chart -------------------------------------------------------------------------------------


def rectangles(svg: str) -> list[tuple[str, float]]:
    found = re.findall(
        r'<rect class="(c\d)" x="\d+" y="([\d.]+)" width="\d+" height="([\d.]+)"', svg
    )
    assert all(float(y) >= 0 for _, y, _ in found)
    return [(colour, float(height)) for colour, _, height in found]


def test_the_bar_of_the_highest_minute_is_as_high_as_the_chart() -> None:
    assert rectangles(bars([{"deny": 3}, {}, {"deny": 1}])) == [("c0", 120.0), ("c0", 40.0)]


def test_the_bar_of_a_minute_has_a_part_for_each_rule_the_largest_first() -> None:
    minutes = [{"rate": 1, "deny": 3}, {"rate": 4}]
    assert leading(minutes) == [("rate", 5), ("deny", 3)]
    assert rectangles(bars(minutes)) == [("c0", 30.0), ("c1", 90.0), ("c0", 120.0)]
    assert "<title>1 min ago: rate 1, deny 3</title>" in bars(minutes)


def test_rules_beyond_the_number_of_colours_share_the_last_one() -> None:
    minute = {f"rule{n}": 20 - n for n in range(COLOURS + 3)}
    used = [colour for colour, _ in rectangles(bars([minute]))]
    assert used == [f"c{min(n, COLOURS - 1)}" for n in range(COLOURS + 3)]


def test_without_refusals_there_are_no_bars() -> None:
    assert rectangles(bars([{}] * 60)) == []
    assert rectangles(bars([])) == []


# -- in a real browser -----------------------------------------------------------------------------

CONTRAST = """() => {
  const parse = c => c.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = c => { const [r, g, b] = parse(c).map(v => { v /= 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const ratio = c => { const [a, b] = [light(c), paper].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05); };
  return [...document.querySelectorAll('h1, h2, p, strong, th, td, svg text')].map(e =>
    ratio(e.namespaceURI.includes('svg') ? getComputedStyle(e).fill : getComputedStyle(e).color));
}"""
"""Returns the contrast of each text with its background, as defined in WCAG 2.1."""


@contextmanager
def opened(browser: Browser, url: str, scheme: Any) -> Iterator[tuple[BrowserPage, list[str]]]:
    """Open *url*; yield the page, and the list of errors of the browser."""
    complaints: list[str] = []

    def elsewhere(asked: str) -> None:
        if asked not in {url, "data:,"}:
            complaints.append(asked)

    context = browser.new_context(color_scheme=scheme)
    page = context.new_page()
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("requestfailed", lambda request: complaints.append(request.url))
    page.on("request", lambda request: elsewhere(request.url))
    page.goto(url)
    yield page, complaints
    context.close()


@pytest.fixture(scope="module")
def lively(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The status page of a daemon that has hostile clients and refusals."""
    options = ("-l", "smtp+proxy:127.0.0.1:0", "--proxy-trust", "127.0.0.1", "--handler", "discard")
    limits = ("--max-from-ip", "2", "--metrics", "127.0.0.1:0", "--hostname", "mx.example.com")
    folder = tmp_path_factory.mktemp("lively")
    with Daemon(*options, *limits, cwd=folder) as daemon, ExitStack() as stack:
        place = ("127.0.0.1", daemon.port)
        for source in ("2001:db8::7", "fe80::1%<b>bold</b>"):
            for _ in range(4):
                sock = stack.enter_context(connect(place))
                sock.sendall(f"PROXY TCP6 {source} 2001:db8::1 4711 25\r\n".encode())
                lines = stack.enter_context(sock.makefile("rb"))
                if lines.readline().startswith(b"220"):
                    sock.sendall(f"EHLO {HOSTILE}\r\n".encode())
                    assert lines.readline().startswith(b"250")
        where = daemon.wait_for(r"metrics on (\S+)$")[1]
        yield f"http://{where}/"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_sufficient_contrast_in_a_browser(
    lively: str, browser: Browser, scheme: str, tmp_path: Path
) -> None:
    with opened(browser, lively, scheme) as (page, complaints):
        assert page.inner_text("h1") == "mx.example.com"
        ratios = page.evaluate(CONTRAST)
        assert len(ratios) > 30
        assert min(ratios) >= 4.5  # WCAG 2.1, 1.4.3
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]
        assert page.locator("svg rect").count() > 0
        assert (
            page.locator("svg rect").first.evaluate("e => getComputedStyle(e).fill")
            == ({"light": "rgb(31, 111, 235)", "dark": "rgb(88, 166, 255)"}[scheme])
        )
        shot = page.screenshot(path=tmp_path / f"{scheme}.png", full_page=True)
        assert len(shot) > 10_000
        assert complaints == []


def test_hostile_names_have_no_effect_in_a_browser(lively: str, browser: Browser) -> None:
    with opened(browser, lively, "light") as (page, complaints):
        assert page.title() == "mx.example.com: smtpd-fork"
        assert page.locator("script, img, b, iframe").count() == 0
        assert HOSTILE[:40] in page.inner_text("body")
        assert complaints == []


def test_the_page_fits_the_width_of_a_telephone(lively: str, browser: Browser) -> None:
    with opened(browser, lively, "light") as (page, _):
        page.set_viewport_size({"width": 390, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_page_reloads_itself(lively: str, browser: Browser) -> None:
    with opened(browser, lively, "light") as (page, complaints):
        complaints.clear()
        with page.expect_navigation(timeout=20_000):
            pass
        assert page.inner_text("h1") == "mx.example.com"
