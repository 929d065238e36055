"""Schema versions: what is written, and how older data is upcast."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from messagedb_sa import InvalidArgument, MessageTypes, Store

from .support import Deposited, Opened, refused


def test_the_schema_version_is_written_if_it_is_above_one(
    messagedb_engine: Engine, store: Store, versions: MessageTypes
) -> None:
    versions.register(Deposited)
    typed = Store(messagedb_engine, types=versions)
    opened = Opened("Ada", "Lovelace", "GB")
    typed.write("a-1", Deposited(1))
    typed.write("a-1", opened)
    typed.write("a-1", opened, metadata={"by": "Ada"})
    typed.write_batch("a-1", [opened, versions.new_message(opened, {"schemaVersion": 3})])
    written = [message.metadata for message in store.read("a-1")]
    three = {"schemaVersion": "3"}
    assert written == [None, three, {"by": "Ada", **three}, three, three]
    assert [message.metadata for message in typed.read("a-1")] == written


def test_older_data_is_upcast_step_by_step(messagedb_engine: Engine, store: Store, versions: MessageTypes) -> None:
    old = {"owner": "Ada Lovelace"}
    second = {"first": "Ada", "last": "Lovelace"}
    store.write_batch(
        "a-1",
        [
            ("Opened", old),
            ("Opened", old, {"schemaVersion": 1}),
            ("Opened", old, {"schemaVersion": None}),
            ("Opened", second, {"schemaVersion": 2}),
            ("Opened", second, {"schemaVersion": "2"}),
            ("Opened", {**second, "country": "GB"}, {"schemaVersion": 3}),
        ],
    )
    versions.check()
    messages = Store(messagedb_engine, types=versions).read("a-1")
    assert [message.data for message in messages] == [Opened("Ada", "Lovelace", "GB")] * 6


@pytest.mark.parametrize("version", [1, 2, 4, "2", True, "three"])
def test_a_schema_version_in_the_metadata_must_be_that_of_the_class(
    messagedb_engine: Engine, versions: MessageTypes, version: object
) -> None:
    typed = Store(messagedb_engine, types=versions)
    opened = Opened("Ada", "Lovelace", "GB")
    assert refused(lambda: typed.write("a-1", opened, metadata={"schemaVersion": version})).argument == "metadata"


def test_check_finds_missing_and_needless_upcasters() -> None:
    types = MessageTypes()
    types.register(Opened, version=3)
    types.upcast("Opened", from_version=1)(dict)
    with pytest.raises(InvalidArgument, match="types='Opened': must have an upcaster from version 2"):
        types.check()
    types.upcast("Opened", from_version=2)(dict)
    types.check()
    types.upcast("Opened", from_version=3)(dict)
    with pytest.raises(InvalidArgument, match=r"types='Opened': must have a class for .* from version 3"):
        types.check()


def test_an_upcaster_is_registered_once() -> None:
    types = MessageTypes()
    types.upcast("Opened", from_version=1)(dict)
    assert refused(lambda: types.upcast("Opened", from_version=1)).argument == "from_version"
    assert refused(lambda: types.upcast("Opened", from_version=0)).argument == "from_version"
    assert refused(lambda: types.upcast("", from_version=1)).argument == "name"
