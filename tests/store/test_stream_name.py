"""Stream names: Python and the database take them apart alike."""

from __future__ import annotations

from uuid import uuid4

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from messagedb_sa import InvalidArgument, functions, stream_name

from ..support import examples

# What PostgreSQL can hold: any text without NUL and without lone surrogates.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
# Mostly separators, so that names with several of them turn up.
names = st.one_of(texts, st.text(st.sampled_from("-+:ab é\n")))
live = settings(max_examples=examples(500))


@pytest.mark.parametrize(
    ("name", "category", "id", "cardinal_id"),
    [
        ("account", "account", None, None),
        ("account-1", "account", "1", "1"),
        ("account:command+position-1-2", "account:command+position", "1-2", "1-2"),
        ("account-1+2+3", "account", "1+2+3", "1"),
        ("account-", "account", "", ""),
        ("-1", "", "1", "1"),
        ("account-+1", "account", "+1", ""),
    ],
)
def test_only_the_first_dash_splits_a_name_and_the_first_plus_its_id(
    name: str, category: str, id: str | None, cardinal_id: str | None
) -> None:
    assert stream_name.category(name) == category
    assert stream_name.id(name) == id
    assert stream_name.cardinal_id(name) == cardinal_id
    assert stream_name.is_category(name) == (id is None)


@live
@given(name=names)
@example(name="")
@example(name="-")
@example(name="a-b+c-d+e")
def test_every_function_agrees_with_the_database_for_any_text(messagedb_engine: Engine, name: str) -> None:
    with messagedb_engine.connect() as connection:
        row = connection.execute(
            select(
                functions.category(name),
                functions.id(name),
                functions.cardinal_id(name),
                functions.is_category(name),
                functions.hash_64(name),
            )
        ).one()
    assert tuple(row) == (
        stream_name.category(name),
        stream_name.id(name),
        stream_name.cardinal_id(name),
        stream_name.is_category(name),
        stream_name.hash_64(name),
    )


@live
@given(id=names, size=st.integers(1, 32_767))
def test_the_member_in_python_is_the_one_that_gets_the_stream_from_the_database(
    messagedb_engine: Engine, id: str, size: int
) -> None:
    name = f"member-{id}"
    member = stream_name.consumer_group_member(name, size)
    assert member is not None
    with messagedb_engine.connect() as connection:
        connection.execute(select(functions.write_message(uuid4(), name, "Tested", {})))
        found = connection.execute(
            select(
                functions.get_category_messages(
                    "member", consumer_group_member=member, consumer_group_size=size, batch_size=-1
                ).messages()
            )
        ).all()
        connection.rollback()
    assert [row.stream_name for row in found] == [name]


def test_a_stream_without_an_id_belongs_to_no_member() -> None:
    assert stream_name.consumer_group_member("account", 3) is None


@pytest.mark.parametrize("size", [0, -1, 32_768])
def test_a_group_size_that_the_database_refuses_is_refused(size: int) -> None:
    with pytest.raises(InvalidArgument, match=f"size={size}"):
        stream_name.consumer_group_member("account-1", size)
