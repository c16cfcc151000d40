"""The chat page: nothing from elsewhere, every word in both languages, and a real browser where there is one."""

from __future__ import annotations

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
    used = set(re.findall(r'data-word="(\w+)"', (STATIC / "index.html").read_text(encoding="utf-8")))
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
