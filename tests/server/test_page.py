"""The chat page: nothing from elsewhere, every word in both languages, and a real browser where there is one."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2]))
from draftsmith.model.protocol import Logits, TokenRun
from tests.support.browser import Browser, find_browser
from tests.support.serving import Running, running
from tests.support.shared_fakes import SharedFakeModel

STATIC = Path(__file__).parents[2] / "src" / "draftsmith" / "server" / "static"


class SlowModel(SharedFakeModel):
    """Slow enough to be stopped."""

    def forward(self, runs: Sequence[TokenRun]) -> list[Logits]:
        time.sleep(0.01)
        return super().forward(runs)


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(SharedFakeModel()) as found:
        yield found


def test_the_page_and_all_that_it_names_come_from_the_server(server: Running) -> None:
    page = server.call("GET", "/")
    assert page.headers["content-type"].startswith("text/html")
    text = page.body.decode()
    named = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert named == ["/static/icon.svg", "/static/chat.css", "/static/words.js", "/static/chat.js"]
    for path in named:
        assert server.call("GET", path).status == 200
    everything = "".join(file.read_text(encoding="utf-8") for file in STATIC.iterdir() if file.suffix != ".svg")
    assert "http:" not in everything
    assert "https:" not in everything


def test_nothing_is_ever_parsed_as_markup_or_run() -> None:
    script = (STATIC / "chat.js").read_text(encoding="utf-8")
    for banned in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert banned not in script
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.search(r'\son\w+="|\sstyle="|<script>|<style>', page)


def test_both_languages_have_every_word() -> None:
    english, spanish = (STATIC / "words.js").read_text(encoding="utf-8").split("  es: {")
    keys = [set(re.findall(r"\b(\w+): \"", part)) for part in (english, spanish)]
    assert keys[0] == keys[1]
    used = set(re.findall(r'data-(?:word|label)="(\w+)"', (STATIC / "index.html").read_text(encoding="utf-8")))
    assert used <= keys[0]


def test_a_chat_in_a_browser(tmp_path: Path) -> None:
    """Typed, streamed, tinted, stopped, regenerated, in Spanish, dark and narrow. Set an environment variable for
    pictures: DRAFTSMITH_TEST_PICTURES=FOLDER.
    """
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium is installed")
    pictures = Path(os.environ.get("DRAFTSMITH_TEST_PICTURES", tmp_path))
    with running(SlowModel()) as server, closing(Browser(program, tmp_path / "profile")) as browser:
        browser.do("Page.navigate", url=server.address)
        browser.until("document.getElementById('model')?.textContent === 'tiny'")
        browser.run("document.getElementById('max_tokens').value = 120")
        browser.run("document.getElementById('input').focus()")
        browser.type("abc <b>abc</b>")
        browser.press("Enter")
        browser.until("document.querySelectorAll('.assistant .drafted').length > 0")
        browser.until("!document.getElementById('again').disabled")
        status = browser.run("document.getElementById('status').textContent")
        assert re.match(r"120 tokens · .* tokens/s · lookup: \d+/\d+ accepted", status), status
        assert browser.run("document.querySelector('.user').textContent") == "abc <b>abc</b>"
        assert browser.run("document.querySelector('.user b')") is None
        browser.picture(pictures / "desktop.png")
        first = browser.run("document.querySelector('.assistant').textContent")
        browser.run("document.getElementById('max_tokens').value = 400")
        browser.run("document.getElementById('again').click()")
        browser.until("document.querySelector('.assistant')?.textContent.length > 3")
        browser.press("Escape")
        browser.until("document.getElementById('stop').disabled")
        assert browser.run("document.querySelectorAll('.assistant').length") == 1
        assert browser.run("document.querySelector('.assistant').textContent") != first
        for field, value in (("language", "es"), ("theme", "dark")):
            browser.run(f"{field}.value = '{value}'; {field}.dispatchEvent(new Event('change'))")
        assert browser.run("document.getElementById('send').textContent") == "Enviar (Intro)"
        browser.resize(390, 844)
        assert browser.run("document.documentElement.scrollWidth <= 390")
        browser.picture(pictures / "phone.png")
        browser.run("document.getElementById('settings').open = true")
        browser.picture(pictures / "settings.png")
        browser.do("Page.reload")
        browser.until("document.documentElement?.lang === 'es'")
        assert browser.problems == []


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("no Chromium is installed")
    with closing(Browser(program, tmp_path_factory.mktemp("profile"))) as found:
        yield found


def open_page(browser: Browser, server: Running) -> None:
    browser.do("Page.navigate", url=server.address)
    browser.until("document.getElementById('model')?.textContent === 'tiny'")
    browser.run("localStorage.clear()")
    browser.do("Page.reload")
    browser.until("document.getElementById('model')?.textContent === 'tiny'")
    browser.run("document.getElementById('max_tokens').value = 30")


def idle(browser: Browser) -> None:
    browser.until("document.getElementById('stop').disabled && !document.getElementById('again').disabled")


def texts(browser: Browser, kind: str) -> list[str]:
    found: list[str] = browser.run(
        f"[...document.querySelectorAll('.{kind}')].map(one => (one.querySelector('.plain') || one).textContent)"
    )
    return found


def test_the_keyboard_is_enough_and_a_reload_forgets_nothing(server: Running, browser: Browser) -> None:
    open_page(browser, server)
    assert browser.focused() == "input"
    browser.type("abc")
    browser.press("Enter", shift=True)
    browser.type("def")
    browser.press("Enter")
    idle(browser)
    assert texts(browser, "user") == ["abc\ndef"]
    first = texts(browser, "assistant")
    assert len(first[0]) > 10
    said = json.dumps(f"Reply: {first[0]}")
    browser.until(f"document.getElementById('said').textContent === {said}")
    browser.press("Tab")
    assert browser.focused() == "again"
    browser.press("Enter")
    browser.until("document.getElementById('branch').textContent === '2/2'")
    idle(browser)
    second = texts(browser, "assistant")
    assert second != first
    browser.do("Page.reload")
    browser.until("document.querySelectorAll('.assistant').length === 1")
    assert texts(browser, "user") == ["abc\ndef"]
    assert texts(browser, "assistant") == second
    browser.run("document.getElementById('earlier').focus()")
    browser.press(" ")
    assert texts(browser, "assistant") == first
    browser.run("document.querySelector('.edit').focus()")
    browser.press("Enter")
    assert browser.focused() == "input"
    assert browser.run("document.getElementById('input').value") == "abc\ndef"
    assert texts(browser, "assistant") == []
    browser.run("document.getElementById('input').value = ''")
    browser.type("hgf")
    browser.press("Enter")
    idle(browser)
    assert texts(browser, "user") == ["hgf"]
    assert browser.run("document.getElementById('branch').textContent") == "3/3"
    browser.run("document.getElementById('new').click()")
    browser.do("Page.reload")
    browser.until("document.getElementById('model')?.textContent === 'tiny'")
    assert texts(browser, "user") == []
    assert browser.problems == []


def test_history_that_is_none_is_no_history(server: Running, browser: Browser) -> None:
    open_page(browser, server)
    for stored in ("{", "[]", '{"messages": 5}', '{"messages": [{"role": "x"}], "others": []}', "null"):
        browser.run(f"localStorage.setItem('draftsmith-chat', {stored!r})")
        browser.do("Page.reload")
        browser.until("document.getElementById('model')?.textContent === 'tiny'")
        assert texts(browser, "user") == []
    assert browser.problems == []


def test_everything_that_can_be_used_has_a_name(server: Running, browser: Browser) -> None:
    open_page(browser, server)
    browser.run("document.getElementById('settings').open = true")
    browser.type("abc")
    browser.press("Enter")
    idle(browser)
    named = browser.named()
    assert [one for one in named if not one[1].strip()] == []
    assert {("textbox", "Message"), ("button", "Send (Enter)"), ("log", "Conversation"), ("article", "You")} <= {*named}
    assert browser.run("document.documentElement.lang") == "en"


def luminance(colour: str) -> float:
    """Relative luminance, WCAG 2.2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


TEXT = [
    *[("ink", ground) for ground in ("back", "card", "mine", "tint", "warn")],
    *[("soft", ground) for ground in ("back", "card")],
    *[("main", ground) for ground in ("back", "card")],
    ("on-main", "main"),
    ("string", "back"),
]
EDGES = [("line", "back"), ("line", "card"), ("line", "warn"), ("main", "mine")]


def test_colours_can_be_told_apart() -> None:
    """WCAG AA: 4.5 for text, 3 for the edges of what can be used. All three places of the colours agree."""
    sheet = (STATIC / "chat.css").read_text(encoding="utf-8")
    blocks = [dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r"\{[^{}]*\}", sheet)]
    light, *darks = [block for block in blocks if len(block) > 5]
    assert len(darks) == 2
    assert darks[0] == darks[1]
    assert light.keys() == darks[0].keys()
    for colours in (light, darks[0]):
        for pairs, least in ((TEXT, 4.5), (EDGES, 3.0)):
            for one, other in pairs:
                assert contrast(colours[one], colours[other]) >= least, (one, other, colours)
