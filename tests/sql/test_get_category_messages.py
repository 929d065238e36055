"""get_category_messages: the streams of a category, correlation, and consumer groups."""

from __future__ import annotations

import pytest
from sqlalchemy import Connection

from .support import call, hash_64, insert, positions, read, refusal, run, streams, write


def test_a_category_is_read_over_all_its_streams(connection: Connection) -> None:
    names = ["account-2", "account-1+2", "accounting-1", "account", "account:command-1", "account-1", "account-2"]
    for name in names:
        write(connection, name)
    found = call(connection, "get_category_messages", category="account")
    assert streams(found) == ["account-2", "account-1+2", "account", "account-1", "account-2"]
    assert [message.global_position for message in found] == [1, 2, 4, 6, 7]


def test_a_category_without_messages_is_empty(connection: Connection) -> None:
    write(connection, "account-1")
    assert call(connection, "get_category_messages", category="acc") == []


@pytest.mark.parametrize("category", ["account-", "account-1"])
def test_a_stream_name_is_refused_as_a_category(connection: Connection, category: str) -> None:
    refused = refusal(connection, call, "get_category_messages", category=category)
    assert refused == ("P0001", f"Must be a category: {category}")


def test_null_for_every_argument_but_the_category_means_its_default(connection: Connection) -> None:
    insert(connection, *range(1002))
    optional = ["position", "batch_size", "correlation", "consumer_group_member", "consumer_group_size", "condition"]
    found = read(connection, "get_category_messages", **dict.fromkeys(optional))
    assert positions(found) == list(range(1, 1001))


def test_correlation_keeps_the_messages_whose_correlation_stream_is_in_that_category(connection: Connection) -> None:
    metadata = [
        '{"correlationStreamName": "other-1"}',
        '{"correlationStreamName": "other-2+3"}',
        '{"correlationStreamName": "other"}',
        '{"correlationStreamName": "others-1"}',
        '{"correlationStreamName": "other:command-1"}',
        '{"correlationStreamName": null}',
        '{"correlation_stream_name": "other-1"}',
        '{"properties": {"correlationStreamName": "other-1"}}',
        "{}",
        "[]",
        None,
    ]
    for each in metadata:
        write(connection, "account-1", metadata=each)
    write(connection, "else-1", metadata=metadata[0])
    assert positions(read(connection, "get_category_messages", correlation="other")) == [0, 1, 2]
    assert positions(read(connection, "get_category_messages", correlation="other:command")) == [4]
    assert len(read(connection, "get_category_messages")) == len(metadata)


@pytest.mark.parametrize("correlation", ["other-1", "other-", "-"])
def test_a_stream_name_is_refused_as_a_correlation(connection: Connection, correlation: str) -> None:
    refused = refusal(connection, read, "get_category_messages", correlation=correlation)
    assert refused == ("P0001", f"Correlation must be a category (Correlation: {correlation})")


GROUP_IDS = [*map(str, range(20)), "1+x", "1+y", "2+x+y", "3-4", "3-5", "", "+x", "ä"]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 32767])
def test_a_stream_belongs_to_the_member_that_its_cardinal_ids_hash_gives(connection: Connection, size: int) -> None:
    expected: dict[int, list[str]] = {member: [] for member in range(min(size, 7))}
    for id in GROUP_IDS:
        write(connection, f"account-{id}")
        expected.setdefault(abs(hash_64(id.split("+")[0])) % size, []).append(f"account-{id}")
    group = {"consumer_group_size": size}
    found = {
        member: streams(read(connection, "get_category_messages", consumer_group_member=member, **group))
        for member in expected
    }
    assert found == expected


def test_a_stream_without_an_id_belongs_to_no_member(connection: Connection) -> None:
    write(connection, "account")
    group = {"consumer_group_member": 0, "consumer_group_size": 1}
    assert read(connection, "get_category_messages", **group) == []
    assert streams(read(connection, "get_category_messages")) == ["account"]


@pytest.mark.parametrize(
    ("member", "size", "flaw"),
    [
        (0, None, "Consumer group member and size must be specified"),
        (None, 1, "Consumer group member and size must be specified"),
        (-1, None, "Consumer group member and size must be specified"),
        (None, 0, "Consumer group member and size must be specified"),
        (0, 0, "Consumer group size must not be less than 1"),
        (0, -1, "Consumer group size must not be less than 1"),
        (-1, 0, "Consumer group size must not be less than 1"),
        (-1, 1, "Consumer group member must not be less than 0"),
        (1, 1, "Consumer group member must be less than the group size"),
        (3, 2, "Consumer group member must be less than the group size"),
        (40000, 40000, "Consumer group member must be less than the group size"),
    ],
)
def test_an_impossible_consumer_group_is_refused(
    connection: Connection, member: int | None, size: int | None, flaw: str
) -> None:
    group = {"consumer_group_member": member, "consumer_group_size": size}
    printed = ["<NULL>" if number is None else number for number in (member, size)]
    assert refusal(connection, read, "get_category_messages", **group) == (
        "P0001",
        f"{flaw} (Consumer Group Member: {printed[0]}, Consumer Group Size: {printed[1]})",
    )


@pytest.mark.parametrize("size", [32768, 65537, 2**40])
def test_a_group_size_above_32767_is_refused_with_22003(connection: Connection, size: int) -> None:
    group = {"consumer_group_member": 0, "consumer_group_size": size}
    assert refusal(connection, read, "get_category_messages", **group) == ("22003", "smallint out of range")


def test_the_filters_of_a_category_are_combined(connection: Connection) -> None:
    run(connection, "SET LOCAL message_store.sql_condition = 'on'")
    for id in range(20):
        for origin in ("other-1", "else-1"):
            write(connection, f"account-{id}", metadata=f'{{"correlationStreamName": "{origin}"}}')
    arguments = {
        "position": 11,
        "batch_size": 3,
        "correlation": "other",
        "consumer_group_member": 1,
        "consumer_group_size": 2,
        "condition": "stream_name <> 'account-7' OR false",
    }
    found = read(connection, "get_category_messages", **arguments)
    mine = [f"account-{id}" for id in range(5, 20) if abs(hash_64(str(id))) % 2 == 1 and id != 7]
    assert streams(found) == mine[:3]
