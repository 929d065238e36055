"""The synchronous and the asynchronous classes are twins: the same methods, signatures, defaults and documentation."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from messagedb_sa import (
    AsyncConsumer,
    AsyncStore,
    AsyncSubscription,
    Consumer,
    ConsumerOptions,
    Store,
    Subscription,
)
from messagedb_sa.consumer._options import Settings

TWINS = [(Store, AsyncStore), (Consumer, AsyncConsumer), (Subscription, AsyncSubscription)]

# What only the asynchronous one says.
ONLY_ASYNC = [
    "If you cancel the task that runs it, the message in hand is not finished; the next run handles it again. ",
    ", coroutine functions or plain ones",
    "If you cancel the task that waits for a message, such as with ``asyncio.wait_for(anext(messages), 15)``, no "
    "message is lost, and you can ask again. ",
]


def public(cls: type) -> dict[str, Any]:
    return {"": cls} | {
        name: getattr(cls, name) for name in vars(cls) if name[0] != "_" and callable(getattr(cls, name))
    }


METHODS = [(sync, twin, name) for sync, twin in TWINS for name in public(sync)]


def without_async(text: str) -> str:
    """The words of the synchronous class, for a text about the asynchronous one."""
    text = " ".join(text.split())
    for only in ONLY_ASYNC:
        text = text.replace(only, "")
    text = re.sub(r"\b(an )?(Async|(?:create_)?async[_ ]|await )(?=\w)", lambda found: _sync(*found.groups()), text)
    for tasks in ("between task", "several task", "any task"):
        text = text.replace(tasks, tasks.replace("task", "thread"))
    return text


def _sync(article: str | None, word: str) -> str:
    return ("a " if article else "") + ("create_" if word == "create_async_" else "")


def normal(text: str) -> str:
    """What differs for reasons of grammar, and the default drivers."""
    text = " ".join(text.split()).replace("an ORM Session", "a Session")
    return re.sub(r"\ban Engine", "a Engine", text).replace("psycopg2", "psycopg")


@pytest.mark.parametrize(("sync", "twin"), TWINS)
def test_they_have_the_same_methods(sync: type, twin: type) -> None:
    assert list(public(twin)) == list(public(sync))


@pytest.mark.parametrize(("sync", "twin", "name"), METHODS)
def test_they_have_the_same_documentation(sync: type, twin: type, name: str) -> None:
    ours, theirs = (inspect.getdoc(public(each)[name]) for each in (sync, twin))
    assert ours
    assert theirs
    assert normal(without_async(theirs)) == normal(ours)


@pytest.mark.parametrize(("sync", "twin", "name"), METHODS)
def test_they_have_the_same_signatures(sync: type, twin: type, name: str) -> None:
    ours, theirs = (inspect.signature(public(each)[name]) for each in (sync, twin))
    for one, other in zip(ours.parameters.values(), theirs.parameters.values(), strict=True):
        assert (other.name, other.kind, other.default) == (one.name, one.kind, one.default)
        assert without_async(str(other.annotation)) == str(one.annotation)
    assert without_async(str(theirs.return_annotation)) == str(ours.return_annotation)


@pytest.mark.parametrize(("sync", "twin", "name"), METHODS)
def test_no_default_is_shown_as_an_object_at_an_address(sync: type, twin: type, name: str) -> None:
    for each in (sync, twin):
        assert " at 0x" not in str(inspect.signature(public(each)[name]))


def test_every_option_of_a_consumer_is_in_its_signature_and_its_documentation() -> None:
    options = list(ConsumerOptions.__annotations__)
    parameters = inspect.signature(Consumer).parameters
    named = [each.name for each in parameters.values() if each.kind is not each.VAR_KEYWORD]
    assert named[-len(options) :] == options
    documented = re.findall(r"^- ((?:``\w+``[^`:]*)+)", inspect.getdoc(Consumer) or "", flags=re.MULTILINE)
    assert [name for line in documented for name in re.findall(r"``(\w+)``", line) if name in options] == options
    assert set(options) <= set(inspect.signature(Settings.checked).parameters)
    for name in options:
        assert str(parameters[name].annotation) == _plain(ConsumerOptions.__annotations__[name])


def _plain(annotation: Any) -> str:
    return str(getattr(annotation, "__forward_arg__", annotation))
