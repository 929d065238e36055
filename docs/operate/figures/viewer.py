"""Takes the pictures of the manual's page on the viewer: make pictures.

It starts a PostgreSQL, fills a store, serves the viewer, and looks at it with Debian's Chromium. With a folder as
argument, it takes pictures of all pages there instead: light, dark and narrow, of an empty store, of hostile messages.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, ViewportSize, sync_playwright
from sqlalchemy import create_engine, text
from sqlalchemy.schema import CreateIndex

from messagedb_sa import Consumer, Message, Store, follow, install, schema
from messagedb_sa.testing import temporary_server
from messagedb_sa.viewer._pages import link

HERE = Path(__file__).parent
WIDE, NARROW = ViewportSize(width=1180, height=760), ViewportSize(width=375, height=760)
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>\"'&amp;\u202e\u0007 {{ 7*7 }} " + "x" * 120


def charge(message: Message) -> None:
    if message.data.get("amount", 0) > 900:
        raise ConnectionError("the bank is closed")


def deliver(message: Message) -> None: ...


def fill(store: Store) -> None:
    """An hour of a shop, with more to do in its middle."""
    chance = random.Random(15)
    kinds = ["Placed", "Placed", "Paid", "Paid", "Packed", "Shipped", "Cancelled"]
    seen = 0
    for minute in range(60):
        for _ in range(int(6 + 4 * chance.random() + (18 if 20 < minute < 34 else 0))):
            order = f"order-{chance.randrange(100, 400)}"
            type_ = chance.choice(kinds)
            amount = chance.randrange(1, 1000)
            data = {"amount": amount, "currency": "EUR", "customer": f"customer-{chance.randrange(40)}"}
            store.write(order, type_, data, {"correlationStreamName": order, "properties": {"region": "eu-west"}})
            if type_ == "Paid":
                paid = store.read_last_message(order)
                assert paid is not None
                store.write(f"invoice-{order[6:]}", "Issued", {"amount": amount}, follow(paid))
            elif chance.random() < 0.2:
                store.write(f"account-{chance.randrange(60)}", "Deposited", {"amount": amount})
        with store.engine.begin() as connection:
            connection.execute(_MOVE, {"minutes": 59 - minute, "seen": seen})
        seen = store.last_global_position("$all")
    Consumer(store, "order", deliver, "mailer").run_until_caught_up()
    Consumer(store, "invoice", charge, "cashier", on_failure="park").run_until_caught_up()
    Consumer(store, "account", deliver, "statements", slots=3).run_until_caught_up()
    Consumer(store, "$all", deliver, "audit").run_until_caught_up()
    store.set_consumer_position("order", seen // 2, "search-index")


_MOVE = text(
    "UPDATE message_store.messages SET time = time - interval '1 minute' * :minutes WHERE global_position > :seen"
)


def fill_with_hostile(store: Store) -> None:
    for n in range(30):
        store.write(f"{HOSTILE[:60]}-{n}{HOSTILE}", HOSTILE, {HOSTILE: [HOSTILE, {"n": n}]}, {HOSTILE: HOSTILE})

    def fail(message: Message) -> None:
        raise ValueError(HOSTILE)

    Consumer(store, HOSTILE[:60].partition("-")[0], fail, HOSTILE, on_failure="park").run_until_caught_up()


@contextmanager
def served(url: str, *options: str) -> Iterator[str]:
    command = [
        str(Path(sys.executable).with_name("messagedb")),
        "--url",
        url,
        "serve",
        "--json",
        "--port",
        "0",
        *options,
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=HERE) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()


def addresses(store: Store) -> dict[str, str]:
    last = store.read("$all", no_of_messages=1, backwards=True)
    letter = next(store.iter_dead_letters(), None)
    found = {"overview": "", "categories": "categories", "all": "all", "live": "live", "consumers": "consumers"}
    found["parked"] = "parked"
    if last:
        (message,) = last
        found["stream"] = link("stream", name=message.stream_name)
        found["category"] = link("category", name=message.category)
        found["streams"] = link("streams", category=message.category)
        found["message"] = link("message", id=message.id)
    if letter:
        found["parked-message"] = link("parked-message", id=letter.id)
        found["confirm"] = link("confirm", id=letter.id, action="discard")
    return found


def take(page: Page, url: str, path: Path, *, whole: bool = False) -> None:
    page.goto(url)
    page.wait_for_load_state()
    page.screenshot(path=path, full_page=whole)


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    browser_program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with ExitStack() as stack:
        server = stack.enter_context(temporary_server())
        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=browser_program, args=["--no-sandbox"] if os.geteuid() == 0 else []
        )
        stores: dict[str, tuple[Store, str]] = {}
        for name, filler in (("full", fill), ("empty", lambda _: None), ("hostile", fill_with_hostile)):
            if folder is None and name != "full":
                continue
            admin = create_engine(server, isolation_level="AUTOCOMMIT")
            with admin.connect() as connection:
                connection.execute(text(f"CREATE DATABASE viewer_{name}"))
            engine = create_engine(admin.url.set(database=f"viewer_{name}"))
            admin.dispose()
            install.upgrade(engine)
            with engine.begin() as connection:
                for index in (schema.correlation_index(), schema.causation_index()):
                    connection.execute(CreateIndex(index))
            store = Store(engine)
            filler(store)
            url = engine.url.render_as_string(hide_password=False)
            stores[name] = store, stack.enter_context(served(url, "--actions"))
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            for name, (store, url) in stores.items():
                for look, size, scheme in (
                    ("light", WIDE, "light"),
                    ("dark", WIDE, "dark"),
                    ("narrow", NARROW, "light"),
                ):
                    options: Any = {"viewport": size, "color_scheme": scheme}
                    page = browser.new_context(**options).new_page()
                    for kind, address in addresses(store).items():
                        take(page, url + address, folder / f"{name}-{kind}-{look}.png", whole=True)
            return
        store, url = stores["full"]
        found = addresses(store)
        light = browser.new_context(viewport=WIDE, color_scheme="light").new_page()
        dark = browser.new_context(viewport=WIDE, color_scheme="dark").new_page()
        take(light, url + found["overview"], HERE / "viewer-overview.png")
        paid = next(each for each in store.read_category("order") if each.type == "Paid")
        take(light, url + link("message", id=paid.id), HERE / "viewer-message.png")
        take(dark, url + found["parked-message"], HERE / "viewer-parked.png")
        work_while_the_viewer_samples(store, light, url + found["consumers"])
        take(light, url + found["consumers"], HERE / "viewer-consumers.png")


def work_while_the_viewer_samples(store: Store, page: Page, url: str) -> None:
    """One consumer catches up, while another falls behind."""
    mailer = Consumer(store, "order", deliver, "mailer")
    behind = store.last_global_position("order") // 2
    page.goto(url)
    for step in range(7):
        for n in range(8 * step):
            store.write(f"order-{n}", "Placed", {"amount": n})
        behind += 60
        store.set_consumer_position("order", behind, "search-index")
        if step % 3 == 2:
            mailer.run_until_caught_up()
        time.sleep(10)


if __name__ == "__main__":
    main()
