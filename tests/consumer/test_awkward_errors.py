"""Errors of handlers that cannot be shown, or that are unlike other errors: they are reported as themselves."""

from __future__ import annotations

import builtins
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import tenacity
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from messagedb_sa import Consumer, HandlerFailed, Message, Store, Tracing

from ..support import numbers
from .support import write


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("cannot be shown")


class MuteAltogether(Mute):
    __repr__ = Mute.__str__


class NotText(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]


class Empty(Exception):
    def __len__(self) -> int:
        return 0


class Undecided(Exception):
    """Python's own traceback module cannot format it."""

    def __bool__(self) -> bool:
        raise RuntimeError("neither")


def caused_by_a_mute_one() -> Exception:
    error = ValueError("outer")
    error.__cause__ = Mute()
    return error


def group() -> Exception:
    if sys.version_info < (3, 11):
        pytest.skip("ExceptionGroup is new in Python 3.11")
    groups = builtins.ExceptionGroup
    return groups("several", [ValueError("one"), Mute(), groups("inner", [MuteAltogether()])])


ERRORS: dict[str, Callable[[], Exception]] = {
    "mute": Mute,
    "mute altogether": MuteAltogether,
    "not text": NotText,
    "empty": lambda: Empty("is empty"),
    "caused by a mute one": caused_by_a_mute_one,
    "group": group,
    "NULs": lambda: ValueError("\0"),
}


@pytest.fixture(params=ERRORS)
def error(request: pytest.FixtureRequest) -> Exception:
    return ERRORS[request.param]()


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[str]]:
    """What is logged, as a handler of logging writes it. Of pytest's own, pytest-xdist could not report all of it."""
    texts: list[str] = []

    class Keeping(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            try:
                texts.append(self.format(record))
            except RuntimeError:
                # As the handlers of logging, which report it and go on.
                texts.append(record.getMessage())

    logger, keeping = logging.getLogger("messagedb_sa.consumer"), Keeping()
    logger.addHandler(keeping)
    logger.propagate = False
    yield texts
    logger.propagate = True
    logger.removeHandler(keeping)


@pytest.mark.parametrize("options", [{}, {"transactional": True}, {"transactional": True, "record_every": 10}])
def test_it_stops_with_the_handlers_own_error(
    store: Store, error: Exception, options: dict[str, Any], logged: list[str]
) -> None:
    write(store, 1)

    def handle(message: Message, *_: Any) -> None:
        raise error

    with pytest.raises(HandlerFailed) as caught:
        Consumer(store, "account", handle, "mailer", **options).run_until_caught_up()
    assert caught.value.__cause__ is error
    assert f"(stream 'account-0', position 0): {type(error).__name__}: " in str(caught.value)
    (failure,) = (each for each in logged if "could not handle a message, stops" in each)
    assert "Traceback" in failure
    assert type(error).__name__ in failure


def test_it_is_tried_again_and_parked(store: Store, error: Exception, logged: list[str]) -> None:
    write(store, 2)

    def handle(message: Message) -> None:
        if message.data["n"] == 0:
            raise error

    policy = tenacity.Retrying(stop=tenacity.stop_after_attempt(2))
    Consumer(store, "account", handle, "mailer", retry=policy, on_failure="park").run_until_caught_up()
    (dead,) = store.read("account:dead-mailer")
    assert dead.data == {"n": 0}
    assert dead.metadata["dead"]["error"].rpartition(".")[2].startswith(type(error).__name__) or "|" in str(
        dead.metadata
    )
    assert "in handle" in dead.metadata["dead"]["traceback"]
    assert [each for each in logged if "tries again in 0.0 s" in each]


def test_its_span_tells_of_it(store: Store, error: Exception) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    write(store, 1)

    def handle(message: Message) -> None:
        raise error

    with pytest.raises(HandlerFailed) as caught:
        Consumer(Store(store.engine, tracing=Tracing(provider)), "account", handle, "mailer").run_until_caught_up()
    assert caught.value.__cause__ is error
    (span,) = exporter.get_finished_spans()
    assert span.status.status_code == StatusCode.ERROR
    assert (span.status.description or "").startswith(f"{type(error).__name__}: ")
    assert [each.name for each in span.events] == ["exception"]
    assert str((span.events[0].attributes or {})["exception.type"]).endswith(type(error).__name__)


def test_a_failed_transaction_of_several_names_it(store: Store, error: Exception, logged: list[str]) -> None:
    write(store, 3)
    left = [error]

    def handle(message: Message, _: Any) -> None:
        if message.data["n"] == 1 and left:
            raise left.pop()

    Consumer(store, "account", handle, "mailer", transactional=True, record_every=10).run_until_caught_up()
    assert [each for each in logged if f"handles its messages one by one: {type(error).__name__}: " in each]
    assert numbers(store.read("account:dead-mailer")) == []


def test_an_error_that_python_cannot_format_is_parked(store: Store) -> None:
    write(store, 2)

    def handle(message: Message) -> None:
        if message.data["n"] == 0:
            raise Undecided("no 0")

    assert Consumer(store, "account", handle, "mailer", on_failure="park").run_until_caught_up() == 2
    (dead,) = store.read("account:dead-mailer")
    assert dead.metadata["dead"]["error"] == "Undecided: no 0"
