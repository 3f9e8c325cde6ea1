"""The page in a real Chromium: it types, streams, stops, and the test looks at the screen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.gateway.chromium import PROGRAM, Browser, chromium
from tests.gateway.conftest import Running
from tests.patience import until

from minitron_trt.errors import UnreachableError

browsing = pytest.mark.skipif(PROGRAM is None, reason="needs Debian's chromium, which is not there")


def test_the_page_may_load_and_run_nothing_else(gateway: Running) -> None:
    status, headers, page = gateway.ask("GET", "/")
    policy = headers["content-security-policy"]

    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert b"innerHTML" not in page
    assert b"http://" not in page
    assert b"https://" not in page


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, gateway: Running) -> Browser:
    browser.resize(1280, 800)
    browser.open(f"{gateway.url}/")
    browser.wait("document.querySelector('#model').value === 'ensemble'")
    browser.click("input[value=complete]")
    return browser


def said(page: Browser) -> str:
    """Return the texts on the screen, of the last answer."""
    return str(page.value("[...document.querySelectorAll('.answer .text')].at(-1).innerText"))


@pytest.mark.slow
@browsing
def test_what_is_typed_is_answered_with_figures(page: Browser, gateway: Running) -> None:
    page.type("Our solar system has one star.")
    page.press("Enter")
    page.wait("document.querySelector('.facts') && !document.querySelector('.busy')")

    assert said(page) == "Our solar system has one star." * 2
    facts = page.value("document.querySelector('.facts').innerText")
    assert "6 tokens" in facts
    assert "first after" in facts
    assert "stop" in facts
    assert gateway.triton.requests[0].max_tokens == 256
    assert page.console == []


@pytest.mark.slow
@browsing
def test_a_chat_goes_on_with_what_was_said(page: Browser, gateway: Running) -> None:
    page.click("input[value=chat]")
    for text in ("First", "Second"):
        page.type(text)
        page.press("Enter")
        page.wait(f"[...document.querySelectorAll('.user')].at(-1)?.innerText === '{text}'")
        page.wait("!document.querySelector('.busy')")

    asked = gateway.triton.requests[-1].text_input
    assert asked.startswith('[{"role": "user", "content": "First"}, {"role": "assistant"')
    assert asked.endswith('{"role": "user", "content": "Second"}]')


@pytest.mark.slow
@browsing
@pytest.mark.parametrize("by_key", [True, False])
def test_stop_cancels_in_triton(page: Browser, gateway: Running, *, by_key: bool) -> None:
    page.type("stall for ever")
    page.press("Enter")
    page.wait("document.querySelector('.busy .facts')?.innerText.includes('1 tokens')")
    assert page.value("document.querySelector('#send').innerText") == "Stop"
    if by_key:
        page.press("Escape")
    else:
        page.click("#send")

    until(gateway.triton.left.is_set)
    page.wait("document.querySelector('.facts').innerText.includes('stopped')")
    assert page.value("document.querySelector('#send').innerText") == "Send"


@pytest.mark.slow
@browsing
def test_what_a_model_says_is_text_and_no_html(page: Browser) -> None:
    evil = "<img src=x onerror=alert(1)><script>document.title='owned'</script><b>bold</b>"
    page.type(evil)
    page.press("Enter")
    page.wait("document.querySelector('.facts') && !document.querySelector('.busy')")

    assert said(page) == evil * 2
    assert page.value("document.querySelectorAll('#talk img, #talk script, #talk b').length") == 0
    assert page.value("document.title") == "minitron-trt"


@pytest.mark.slow
@browsing
def test_an_error_is_said_and_the_question_kept(page: Browser, gateway: Running) -> None:
    gateway.triton.error = UnreachableError("gone")
    page.click("input[value=chat]")
    page.type("Hello")
    page.press("Enter")
    page.wait("!!document.querySelector('.error')")

    assert "cannot be reached" in page.value("document.querySelector('.error').innerText")
    assert page.value("document.querySelector('#prompt').value") == "Hello"


@pytest.mark.slow
@browsing
def test_it_fits_a_phone_and_follows_the_theme(page: Browser, tmp_path: Path) -> None:
    grounds = set()
    page.type("Our solar system has one star, eight planets and countless smaller bodies.")
    page.press("Enter")
    page.wait("document.querySelector('.facts') && !document.querySelector('.busy')")
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        for width, height in ((1280, 800), (360, 740)):
            page.resize(width, height, is_phone=width < 500)
            page.picture(tmp_path / f"{scheme}{width}.png")
            wide = page.value("document.documentElement.scrollWidth")
            assert wide <= width
            assert (
                page.value("document.querySelector('#send').getBoundingClientRect().right") < wide
            )
        grounds.add(page.value("getComputedStyle(document.body).backgroundColor"))

    assert len(grounds) == 2
    page.click("#settings")
    assert page.value("document.querySelector('#temperature').checkVisibility()")
    page.picture(tmp_path / "settings.png")
