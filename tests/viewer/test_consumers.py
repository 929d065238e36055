"""Consumers in the viewer: what is listed, and what is sampled."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from messagedb_sa import Consumer, Store
from messagedb_sa.viewer import _consumers, viewer

from ..waits import wait_until
from .support import browser


def write(store: Store, number: int) -> None:
    store.write_batch("account-1", [("Opened", {"n": n}) for n in range(number)])


def consume(store: Store, identifier: str, **options: Any) -> None:
    Consumer(store, "account", lambda _: None, identifier, **options).run_until_caught_up()


def test_the_one_that_is_furthest_behind_comes_first_and_its_lag_is_bounded(client: TestClient, store: Store) -> None:
    write(store, 1)
    consume(store, "far-<b>behind</b>")
    write(store, _consumers.MAX_LAG)
    consume(store, "near")
    write(store, 3)
    consume(store, "shared", slots=2)
    page = client.get("/consumers").text
    rows = page.partition("<tbody>")[2].partition("</tbody>")[0].split("<tr>")[1:]
    assert [next(name for name in ("far-&lt;b&gt;", "near", "shared") if name in row) for row in rows] == [
        "far-&lt;b&gt;",
        "near",
        "shared",
        "shared",
    ]
    assert "&gt; 1" in rows[0]
    assert ">3</td>" in rows[1]
    assert "member 0 of 2" in page
    assert "nothing waits" in rows[2]


def test_without_consumers_the_page_says_how_to_start_one(client: TestClient, store: Store) -> None:
    page = client.get("/consumers").text
    assert "No consumer has recorded a position" in page
    assert "Consumer(store" in page


def test_it_samples_from_the_first_look_on_and_stops_when_nobody_looks(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_consumers, "SAMPLE_SECONDS", 0.01)
    write(store, 1)
    consume(store, "mailer")
    app: Any = viewer(store)
    history = app._app.state.history
    assert len(history.samples) == 0
    # Or else it would stop after some seconds without a look, which a busy machine may need for the first samples.
    monkeypatch.setattr(_consumers, "KEPT", 10**9)
    with browser(app) as client:
        assert "its first sample just now" in client.get("/consumers").text
        wait_until(lambda: len(history.samples) > 3, "it has sampled")
        assert "Sampled every" in client.get("/consumers").text
        monkeypatch.setattr(_consumers, "KEPT", 0)
        wait_until(lambda: history._task.done(), "it has stopped")
        seen = len(history.samples)
        assert client.get("/").status_code == 200
        assert len(history.samples) == seen
        # The next look begins again.
        monkeypatch.setattr(_consumers, "KEPT", 10**9)
        client.get("/consumers")
        assert not history._task.done()
    assert history.samples.maxlen == 360


def test_no_more_is_kept_than_a_chart_can_show(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_consumers, "_DRAWN", 2)
    write(store, 1)
    for n in range(3):
        consume(store, f"c{n}")
    app: Any = viewer(store)
    with browser(app) as client:
        client.get("/consumers")
        assert [len(values) for _, values in app._app.state.history.samples] == [2]
