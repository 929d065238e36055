"""Message: what a read gives."""

from __future__ import annotations

import copy
import pickle
from datetime import datetime, timezone

import pytest

from messagedb_sa import Message

MESSAGE = Message(
    id="7d3a3b5e-6c3c-4f0e-9f5f-0a6f5a2f1a11",
    stream_name="account:command-1+2",
    type="Opened",
    position=0,
    global_position=1,
    data={"balance": 0},
    metadata=None,
    time=datetime(2026, 11, 23, 12, tzinfo=timezone.utc),
)


def test_fields_are_attributes_keys_and_a_dict() -> None:
    as_dict = dict(MESSAGE)
    assert list(as_dict) == [
        "id",
        "stream_name",
        "type",
        "position",
        "global_position",
        "data",
        "metadata",
        "time",
    ]
    for name, value in as_dict.items():
        assert getattr(MESSAGE, name) == MESSAGE[name] == value


def test_it_unpacks_like_a_row() -> None:
    id, stream_name, *_, time = MESSAGE
    assert (id, stream_name, time) == (MESSAGE.id, MESSAGE.stream_name, MESSAGE.time)
    assert MESSAGE[1] == MESSAGE.stream_name
    assert MESSAGE[-1] == MESSAGE.time


@pytest.mark.parametrize("key", ["nothing", "category", "keys", "__class__"])
def test_a_key_that_is_not_a_field_is_a_key_error(key: str) -> None:
    with pytest.raises(KeyError, match=key):
        MESSAGE[key]


def test_it_is_immutable() -> None:
    with pytest.raises(AttributeError):
        MESSAGE.position = 1  # type: ignore[misc]
    with pytest.raises(AttributeError):
        MESSAGE.anything = 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_it_pickles(protocol: int) -> None:
    twin = pickle.loads(pickle.dumps(MESSAGE, protocol))
    assert type(twin) is Message
    assert twin == MESSAGE


def test_it_copies_with_a_field_replaced() -> None:
    assert copy.deepcopy(MESSAGE) == MESSAGE
    assert MESSAGE._replace(position=5).position == 5


def test_the_parts_of_the_stream_name_are_derived() -> None:
    assert MESSAGE.category == "account:command"
    assert MESSAGE.stream_id == "1+2"
    assert MESSAGE.cardinal_id == "1"
    in_category = MESSAGE._replace(stream_name="account")
    assert (in_category.category, in_category.stream_id, in_category.cardinal_id) == ("account", None, None)


def test_its_repr_names_the_fields() -> None:
    assert repr(MESSAGE).startswith("Message(id='7d3a3b5e-6c3c-4f0e-9f5f-0a6f5a2f1a11', stream_name=")
