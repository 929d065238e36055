"""``MessageTypes.decode`` leaves the message that you pass as it is."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from messagedb_sa import Message, MessageNotDecodable, MessageTypes, Store


class Opened:
    def __init__(self, data: dict[str, Any]) -> None:
        self.owner = data.pop("owner")
        self.tags = data["tags"]


def spoiled(data: dict[str, Any]) -> dict[str, Any]:
    data["tags"].append("upcast")
    return data


@pytest.fixture
def message(store: Store) -> Message:
    store.write("a-1", "Opened", {"owner": "Ada", "tags": ["new"]}, {"trace": ["t-1"]})
    return store.read("a-1")[0]


@pytest.mark.parametrize("version", [1, 2])
def test_upcasters_and_classes_that_change_their_data_do_not_change_it(message: Message, version: int) -> None:
    types = MessageTypes()
    types.register(Opened, version=version, encode=vars, decode=Opened)
    types.upcast("Opened", from_version=1)(spoiled)
    before = copy.deepcopy(message)
    for _ in range(2):
        decoded = types.decode(message)
        assert decoded.data.tags == ["new", "upcast"][:version]
        decoded.data.tags.clear()
        decoded.metadata["trace"].clear()
    assert message == before


def test_an_upcaster_that_fails_half_way_does_not_change_it(message: Message) -> None:
    types = MessageTypes()
    types.register(Opened, version=2, encode=vars, decode=Opened)

    @types.upcast("Opened", from_version=1)
    def fail(data: dict[str, Any]) -> dict[str, Any]:
        spoiled(data)
        raise ValueError("no")

    before = copy.deepcopy(message)
    with pytest.raises(MessageNotDecodable):
        types.decode(message)
    assert message == before
