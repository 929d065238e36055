"""Clocks that stand still or jump, as tests and administrators make them."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import pytest
import tenacity

from messagedb_sa import Consumer, Store

from ..support import clocks_stopped, consumer_on
from ..waits import wait_until
from .support import Failing, positions, running, write


@pytest.fixture(params=[-86400.0, 1e9])
def stopped(request: pytest.FixtureRequest) -> Any:
    with clocks_stopped(request.param):
        yield


def test_it_polls_and_records_its_position_though_the_clock_stands_still(
    stopped: None, each_store: Store, store: Store
) -> None:
    assert time.monotonic() == time.monotonic()
    handler = Failing(at=-1)
    consumer = consumer_on(each_store, "account", handler, "mailer", poll_seconds=0.01, record_seconds=0.05)
    with running(consumer):
        for n in range(3):
            write(store, 1, first=n)
            wait_until(partial(has_recorded, store, n + 1))
    assert handler.numbers == [0, 1, 2]


def has_recorded(store: Store, times: int) -> bool:
    return len(positions(store, "account:position-mailer")) == times


def test_it_tries_again_after_a_pause_though_the_clock_stands_still(stopped: None, store: Store) -> None:
    write(store, 1)
    handler = Failing(at=0, times=1)
    policy = tenacity.Retrying(wait=tenacity.wait_fixed(0.05))
    Consumer(store, "account", handler, "mailer", retry=policy).run_until_caught_up()
    assert handler.numbers == [0, 0]


def test_slots_are_shared_though_the_clock_stands_still(stopped: None, store: Store, messagedb_url: str) -> None:
    handlers = [Failing(at=-1), Failing(at=-1)]
    stores = [Store.from_url(messagedb_url) for _ in handlers]
    one, other = (
        Consumer(each, "account", handler, "mailer", slots=2, poll_seconds=0.01)
        for each, handler in zip(stores, handlers, strict=True)
    )
    with running(one), running(other):

        def both_handle() -> bool:
            write(store, 3)
            return all(handler.numbers for handler in handlers)

        wait_until(both_handle)
    for each in stores:
        each.engine.dispose()
