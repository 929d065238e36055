"""The viewer in a real browser."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from sqlalchemy import create_engine

from messagedb_sa import Consumer, Message, Store, follow
from messagedb_sa.viewer import _live, viewer
from messagedb_sa.viewer._pages import link

from ..support import free_port
from ..waits import HANG
from .serving import Served, browser_options, browser_program, served

pytestmark = pytest.mark.skipif(
    browser_program() is None, reason="there is no chromium, chromium-browser or google-chrome on the PATH"
)
expect.set_options(timeout=HANG * 1000)

# If any of it runs, it opens a dialog or sets this variable.
HOSTILE = (
    '<img src=x onerror="window.ran=1;alert(1)"><script>window.ran=2;alert(2)</script>'
    "\"'><svg onload=alert(3)>&lt;b&gt; javascript:alert(4) {{ 7*7 }} {% raw %} \u202e \u2028 ${1} </script>"
)
CATEGORY = "<i onclick=alert(5)>\"'&"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**browser_options())
        yield browser
        browser.close()


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "messagedb_sa")


class Watched:
    """A page, and what must not happen in it."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.context.set_default_timeout(HANG * 1000)
        self.wrong: list[str] = []
        self.page = self.context.new_page()
        self.page.on("console", lambda said: self._say(said.type, said.text))
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on("dialog", self._dismiss)
        self.page.on("request", self._look_at)
        self.base = ""

    def _say(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.wrong.append(f"{kind}: {text}")

    def _dismiss(self, dialog: Any) -> None:
        self.wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _look_at(self, request: Any) -> None:
        if not request.url.startswith(self.base):
            self.wrong.append(f"loads {request.url}")

    def go(self, served: Served, address: str = "") -> Page:
        self.base = served.url
        answer = self.page.goto(served.url + address)
        assert answer is not None
        assert answer.status == 200, address
        return self.page


@pytest.fixture
def watched(chromium: Browser) -> Iterator[Watched]:
    one = Watched(chromium, viewport={"width": 1180, "height": 800})
    yield one
    one.context.close()
    assert one.wrong == []


@pytest.fixture
def own_store(messagedb_url: str, store: Store) -> Iterator[Store]:
    engine = create_engine(messagedb_url)
    yield Store(engine)
    engine.dispose()


def handle(message: Message) -> None:
    if not message.metadata["properties"].get("repaired"):
        raise ValueError(HOSTILE)


def fill(store: Store) -> dict[str, str]:
    """A store with hostile messages, and the addresses of all pages."""
    stream = f"{CATEGORY}-1{HOSTILE}"
    store.write(stream, HOSTILE, {HOSTILE: [HOSTILE, {"n": 1}]}, {"properties": {HOSTILE: HOSTILE}, HOSTILE: HOSTILE})
    first = store.read_last_message(stream)
    assert first is not None
    store.write(f"{CATEGORY}-2", HOSTILE, HOSTILE, follow(first, {"correlationStreamName": stream}))
    Consumer(store, CATEGORY, lambda _: None, HOSTILE).run_until_caught_up()
    Consumer(store, CATEGORY, handle, "mailer", on_failure="park").run_until_caught_up()
    letters = [*store.iter_dead_letters()]
    return {
        "overview": "",
        "categories": "categories",
        "messages": "all",
        "category": link("category", name=CATEGORY),
        "streams": link("streams", category=CATEGORY),
        "stream": link("stream", name=stream),
        "message": link("message", id=first.id),
        "search": link("search", q=stream),
        "correlation": link("correlation", name=stream),
        "live": link("live", name=CATEGORY),
        "consumers": "consumers",
        "parked": "parked",
        "parked message": link("parked-message", id=letters[0].id),
        "confirm": link("confirm", action="discard", id=letters[0].id),
    }


@pytest.fixture
def full(own_store: Store) -> Iterator[tuple[Served, dict[str, str]]]:
    addresses = fill(own_store)
    mailer = Consumer(own_store, CATEGORY, handle, "mailer")
    with served(viewer(own_store, actions=True, consumers=[mailer]), timeout_graceful_shutdown=5) as one:
        yield one, addresses


def test_no_page_runs_what_a_message_holds_or_breaks_the_policy(
    full: tuple[Served, dict[str, str]], watched: Watched
) -> None:
    one, addresses = full
    for name, address in addresses.items():
        page = watched.go(one, address)
        assert page.evaluate("window.ran") is None, name
        assert page.locator("main img, main script, main i").count() == 0, name
        expect(page.locator("h1")).to_be_visible()
    # Folded parts too.
    for name in ("message", "parked message", "overview"):
        page = watched.go(one, addresses[name])
        for summary in page.locator("main summary").all():
            if summary.is_visible():
                summary.click()
        assert page.evaluate("window.ran") is None, name


@pytest.mark.parametrize("width", [375, 320])
def test_no_page_is_wider_than_a_narrow_screen(
    full: tuple[Served, dict[str, str]], chromium: Browser, width: int
) -> None:
    one, addresses = full
    narrow = Watched(chromium, viewport={"width": width, "height": 700})
    for name, address in addresses.items():
        page = narrow.go(one, address)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        # Nor is a list of anything, whose last columns nobody would see.
        for table in page.locator("table.plain, table.rows, table.messages").all():
            assert table.evaluate("each => each.scrollWidth <= each.parentElement.clientWidth"), name
    narrow.context.close()
    assert narrow.wrong == []


def test_dark_and_light_differ_and_the_choice_is_kept(full: tuple[Served, dict[str, str]], chromium: Browser) -> None:
    one, _ = full
    colours = {}
    for scheme in ("light", "dark"):
        watched = Watched(chromium, color_scheme=scheme)
        page = watched.go(one)
        colours[scheme] = page.evaluate("getComputedStyle(document.body).backgroundColor")
        page.get_by_role("button", name="Dark or light").click()
        other = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert other != colours[scheme]
        page = watched.go(one, "all")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == other
        watched.context.close()
    assert colours["light"] != colours["dark"]


def test_times_are_those_of_the_readers_zone(full: tuple[Served, dict[str, str]], chromium: Browser) -> None:
    one, addresses = full
    shown = {}
    for zone in ("Asia/Tokyo", "America/New_York"):
        watched = Watched(chromium, timezone_id=zone, locale="en-GB")
        page = watched.go(one, addresses["stream"])
        time = page.locator("main time").first
        at = time.get_attribute("datetime")
        shown[zone] = time.inner_text()
        expected = page.evaluate(
            "at => new Intl.DateTimeFormat(undefined, {dateStyle: 'medium', timeStyle: 'medium'}).format(new Date(at))",
            at,
        )
        assert shown[zone] == expected
        assert "UTC" in (time.get_attribute("title") or "")
        watched.context.close()
    assert len(set(shown.values())) == 2


def test_all_pages_work_without_javascript(full: tuple[Served, dict[str, str]], chromium: Browser) -> None:
    one, addresses = full
    plain = Watched(chromium, java_script_enabled=False)
    for name, address in addresses.items():
        page = plain.go(one, address)
        expect(page.locator("h1")).to_be_visible()
        if name == "live":
            expect(page.get_by_text("Following needs JavaScript")).to_be_visible()
        if name == "stream":
            assert "UTC" in page.locator("main time").first.inner_text()
    page = plain.go(one, addresses["parked"])
    page.get_by_role("checkbox").first.check()
    page.get_by_role("button", name="Discard selected").click()
    page.get_by_role("button", name="Discard", exact=True).click()
    expect(page.get_by_role("status")).to_have_text("1 of 1 discarded.")
    plain.context.close()


def test_the_keyboard_leads_through_the_rows_to_a_message(
    full: tuple[Served, dict[str, str]], watched: Watched
) -> None:
    one, _ = full
    page = watched.go(one, "all")
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("k")
    expect(page.locator("[data-rows] a.main").first).to_be_focused()
    page.keyboard.press("Enter")
    page.wait_for_url("**/message?id=*")
    page.keyboard.press("/")
    expect(page.get_by_role("searchbox")).to_be_focused()
    page.keyboard.type("mailer jk p")
    expect(page.get_by_role("searchbox")).to_have_value("mailer jk p")


# ---- parked messages


def test_a_message_is_replayed_and_another_discarded_by_clicking(
    full: tuple[Served, dict[str, str]], watched: Watched, store: Store
) -> None:
    one, _ = full
    assert len([*store.iter_dead_letters()]) == 2
    page = watched.go(one, "parked")
    # It fails again.
    page.get_by_role("checkbox").first.check()
    page.get_by_role("button", name="Replay selected").click()
    expect(page.get_by_role("heading", name="Replay 1 parked message?")).to_be_visible()
    page.get_by_role("button", name="Replay", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("0 of 1 handled.")
    page.locator("a.main").first.click()
    expect(page.get_by_role("heading", name="Error", exact=True)).to_be_visible()
    page.get_by_role("button", name="Discard").click()
    page.get_by_role("link", name="Cancel").click()
    # all() takes what the page has at this moment, which may still be the one before.
    expect(page.get_by_role("checkbox")).to_have_count(2)
    assert len([*store.iter_dead_letters()]) == 2
    for checkbox in page.get_by_role("checkbox").all():
        checkbox.check()
    page.get_by_role("button", name="Discard selected").click()
    page.get_by_role("button", name="Discard", exact=True).click()
    expect(page.get_by_role("status")).to_have_text("2 of 2 discarded.")
    expect(page.get_by_text("No message is parked")).to_be_visible()
    assert [*store.iter_dead_letters()] == []
    # Loading that page again sends no form.
    page.reload()
    expect(page.get_by_role("status")).to_have_text("2 of 2 discarded.")


def test_the_page_of_another_site_can_discard_nothing(
    full: tuple[Served, dict[str, str]], chromium: Browser, store: Store
) -> None:
    one, addresses = full
    watched = Watched(chromium)
    letter = next(store.iter_dead_letters())
    # The browser has the cookie of the form, and the other site even knows the token.
    page = watched.go(one, addresses["confirm"])
    token = page.locator('input[name="token"]').get_attribute("value")
    html = (
        f'<form action="{one.url}resolve" method="post"><input name="id" value="{letter.id}">'
        f'<input name="action" value="discard"><input name="token" value="{token}"><button>Win</button></form>'
    )
    page.route("http://evil.example/", lambda route: route.fulfill(body=html, content_type="text/html"))
    page.goto("http://evil.example/")
    with page.expect_response("**/resolve") as answer:
        page.get_by_role("button").click()
    assert answer.value.status == 403
    assert len([*store.iter_dead_letters()]) == 2
    watched.context.close()


# ---- live


def test_messages_appear_while_they_are_written(
    full: tuple[Served, dict[str, str]], watched: Watched, store: Store
) -> None:
    one, _ = full
    page = watched.go(one, "live")
    expect(page.get_by_role("status")).to_have_text("live")
    store.write(f"{CATEGORY}-3{HOSTILE}", HOSTILE, {HOSTILE: HOSTILE})
    expect(page.locator("#rows tr")).to_have_count(1)
    expect(page.locator("#rows a.main")).to_have_text(HOSTILE)
    store.write("account-1", "Opened", None)
    expect(page.locator("#rows tr").first).to_contain_text("no data")
    assert page.evaluate("window.ran") is None
    expect(page.get_by_role("status")).to_contain_text("live: 2 messages")
    # While it pauses, nothing moves; then it goes on where it stopped.
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_role("status")).to_contain_text("paused")
    for n in range(3):
        store.write("account-1", "Opened", {"n": n})
    expect(page.locator("#rows tr")).to_have_count(2)
    page.keyboard.press("p")
    expect(page.locator("#rows tr")).to_have_count(5)
    expect(page.locator("#rows tr").first).to_contain_text('{"n": 2}')
    page.locator("#rows a.main").first.click()
    page.wait_for_url("**/message?id=*")


def test_the_rows_of_a_live_page_are_bounded(
    full: tuple[Served, dict[str, str]], watched: Watched, store: Store
) -> None:
    one, _ = full
    page = watched.go(one, "live?name=account")
    expect(page.get_by_role("status")).to_have_text("live")
    store.write_batch("account-1", [("Opened", {"n": n}) for n in range(450)])
    expect(page.get_by_role("status")).to_contain_text("450 messages")
    expect(page.locator("#rows tr")).to_have_count(200)
    expect(page.locator("#rows tr").first).to_contain_text('{"n": 449}')
    expect(page.locator("#rows tr").last).to_contain_text('{"n": 250}')


def test_a_live_page_says_so_if_it_is_refused(
    full: tuple[Served, dict[str, str]], chromium: Browser, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, _ = full
    monkeypatch.setattr(_live, "VIEWERS", 0)
    watched = Watched(chromium)
    page = watched.go(one, "live")
    expect(page.get_by_role("status")).to_contain_text("the server refuses")
    watched.context.close()


def test_after_the_server_was_away_nothing_is_missing(own_store: Store, chromium: Browser) -> None:
    watched = Watched(chromium)
    port = free_port()
    with served(viewer(own_store), at=port, timeout_graceful_shutdown=1) as one:
        page = watched.go(one, "live?name=account")
        expect(page.get_by_role("status")).to_have_text("live")
    expect(page.get_by_role("status")).to_have_text("connecting again …")
    for n in range(3):
        own_store.write("account-1", "Opened", {"n": n})
    with served(viewer(own_store), at=port, timeout_graceful_shutdown=1):
        expect(page.locator("#rows tr")).to_have_count(3)
        expect(page.locator("#rows tr").last).to_contain_text('{"n": 0}')
        watched.context.close()
