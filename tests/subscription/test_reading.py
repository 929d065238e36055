"""What a subscription hands out: which messages, in which order, from where on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from messagedb_sa import (
    AsyncStore,
    AsyncSubscription,
    Consumer,
    InvalidArgument,
    MessageNotDecodable,
    MessageTypes,
    Store,
    Subscription,
)

from ..support import insert, numbers
from .support import following, write

# No poll comes before a hang.
NEVER = 3600.0


@pytest.mark.parametrize("name", ["account-1", "account", "$all"])
def test_it_hands_out_what_there_is_and_then_what_is_written(
    store: Store, messagedb_url: str, driver: str, name: str
) -> None:
    write(store, 0, 1)
    with following(driver, messagedb_url, name, poll_seconds=0.01) as followed:
        followed.wait_for(0, 1)
        store.write_batch("account-1", [("Counted", {"n": 2}), ("Counted", {"n": 3})])
        followed.wait_for(0, 1, 2, 3)
        write(store, 4)
        followed.wait_for(0, 1, 2, 3, 4)


def test_a_stream_has_no_messages_of_its_category(store: Store) -> None:
    write(store, 0, stream_name="account-1")
    write(store, 1, stream_name="account-2")
    write(store, 2, stream_name="account-1")
    messages = Subscription(store, "account-1")
    assert numbers([next(messages), next(messages)]) == [0, 2]


@pytest.mark.parametrize("name", ["account-1", "account", "$all"])
def test_more_messages_than_a_batch_come_in_order(store: Store, name: str) -> None:
    write(store, *range(10))
    messages = Subscription(store, name, batch_size=3)
    assert numbers(next(messages) for _ in range(10)) == list(range(10))


def test_the_position_is_inclusive_and_of_the_stream_or_global(store: Store) -> None:
    write(store, 0, stream_name="other-1")
    write(store, 1, 2, 3)
    assert next(Subscription(store, "account-1", 1)).data == {"n": 2}
    third = store.read("account-1")[1].global_position
    for name in ("account", "$all"):
        assert next(Subscription(store, name, third)).data == {"n": 2}


@pytest.mark.parametrize("name", ["account-1", "account", "$all"])
def test_from_the_end_on_it_hands_out_what_is_written_after_it_was_entered(
    store: Store, messagedb_url: str, driver: str, name: str
) -> None:
    write(store, 0, 1)
    with following(driver, messagedb_url, name, "end", poll_seconds=0.01) as followed:
        write(store, 2)
        followed.wait_for(2)


@pytest.mark.parametrize("name", ["account-1", "account", "$all"])
def test_from_the_end_of_nothing_it_hands_out_the_first_message(store: Store, name: str) -> None:
    with Subscription(store, name, "end") as messages:
        write(store, 0)
        assert next(messages).data == {"n": 0}


def test_the_end_of_a_category_is_before_a_message_that_is_not_committed(store: Store) -> None:
    """Its global position is lower than that of another category's last message."""
    with store.engine.begin() as connection:
        write(Store(connection), 0)
        write(store, 1, stream_name="other-1")
        messages = Subscription(store, "account", "end").__enter__()
    assert next(messages).data == {"n": 0}


def test_it_can_be_limited_to_a_correlation(store: Store) -> None:
    for n, origin in enumerate(["mail-1", "order-1", "mail-2"]):
        store.write("account-1", "Counted", {"n": n}, {"correlationStreamName": origin})
    messages = Subscription(store, "account", correlation="mail")
    assert numbers([next(messages), next(messages)]) == [0, 2]


def test_after_break_it_continues_with_the_next_message(store: Store) -> None:
    write(store, 0, 1, 2, 3)
    messages = Subscription(store, "account", batch_size=3)
    seen = []
    for _ in range(2):
        for message in messages:
            seen.append(message.data["n"])
            if message.data["n"] % 2:
                break
    assert seen == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["account-1", "account", "$all"])
def test_it_continues_behind_a_message_that_cannot_be_decoded(store: Store, name: str) -> None:
    write(store, 0)
    insert(store, "account-1", 1, "Counted", "{}", "'infinity'")
    write(store, 2)
    messages = Subscription(store, name)
    assert next(messages).data == {"n": 0}
    with pytest.raises(MessageNotDecodable):
        next(messages)
    assert next(messages).data == {"n": 2}


def test_the_data_of_registered_types_are_instances(store: Store, messagedb_url: str, driver: str) -> None:
    types = MessageTypes()

    @types.register
    @dataclass(frozen=True)
    class Counted:
        n: int

    write(store, 0)
    with following(driver, messagedb_url, "account", types=types) as followed:
        while not followed.messages:
            assert not followed.ended.wait(0.002)
    assert followed.messages[0].data == Counted(0)


def test_data_that_do_not_fit_their_type_are_an_error_and_those_after_it_come(store: Store) -> None:
    types = MessageTypes()

    @types.register
    @dataclass(frozen=True)
    class Counted:
        n: int

    store.write_batch("account-1", [("Counted", {"n": 0}), ("Counted", {"m": 1}), ("Counted", {"n": 2})])
    messages = Subscription(Store(store.engine, types=types), "account")
    assert next(messages).data == Counted(0)
    with pytest.raises(MessageNotDecodable):
        next(messages)
    assert next(messages).data == Counted(2)


# ---- $all, and its gaps


def test_all_waits_at_a_gap_until_the_transaction_has_ended(store: Store, messagedb_url: str, driver: str) -> None:
    with following(driver, messagedb_url, "$all", poll_seconds=0.01) as followed:
        with store.engine.begin() as connection:
            write(Store(connection), 0)
            write(store, 1, stream_name="other-1")
            followed.wait_for_reads(3)
            assert followed.messages == []
        followed.wait_for(0, 1)


def test_a_gap_of_a_transaction_that_rolled_back_does_not_hold_it_up(
    notify: None, store: Store, messagedb_url: str, driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody notifies of the end of such a transaction."""
    monkeypatch.setattr("messagedb_sa.subscription._follower.NOTIFIED_POLL_SECONDS", NEVER)
    with following(driver, messagedb_url, "$all", poll_seconds=0.01) as followed:
        with store.engine.connect() as connection:
            write(Store(connection), 0)
            write(store, 1, stream_name="other-1")
            followed.wait_for_reads(3)
            assert followed.messages == []
            connection.rollback()
        followed.wait_for(1)


def test_all_includes_what_consumers_record(store: Store) -> None:
    write(store, 0)
    Consumer(store, "account", print, "mailer").run_until_caught_up()
    messages = Subscription(store, "$all")
    assert [next(messages).type, next(messages).type] == ["Counted", "Recorded"]


# ---- what is refused


def test_its_store_must_be_on_an_engine(store: Store, messagedb_url: str) -> None:
    with store.engine.connect() as connection, pytest.raises(InvalidArgument) as raised:
        Subscription(Store(connection), "account")
    assert "must be a Store on an Engine: a subscription reads what has been committed" in str(raised.value)
    with pytest.raises(InvalidArgument, match="for this store, use Subscription"):
        AsyncSubscription(store, "account")  # type: ignore[arg-type]
    async_store: Any = AsyncStore.from_url(messagedb_url.replace("psycopg2", "asyncpg"))
    with pytest.raises(InvalidArgument, match="for this store, use AsyncSubscription"):
        Subscription(async_store, "account")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"stream_name": ""}, "stream_name='': must not be empty"),
        ({"stream_name": 1}, "stream_name=1: must be a string"),
        ({"position": -1}, "position=-1: must be between 0 and 9223372036854775807"),
        ({"position": "now"}, "position='now': must be an integer or \"end\""),
        ({"position": None}, 'position=None: must be an integer or "end"'),
        ({"batch_size": 0}, "batch_size=0: must be between 1 and 9223372036854775807"),
        ({"poll_seconds": -1}, "poll_seconds=-1: must be a finite number of seconds, 0 or more"),
        ({"reconnect": "yes"}, "reconnect='yes': must be True or False"),
        ({"correlation": "mail-1"}, "correlation='mail-1': must be a category, without a -"),
        (
            {"stream_name": "account-1", "correlation": "mail"},
            "correlation='mail': is only for a category, and 'account-1' is not one",
        ),
        (
            {"stream_name": "$all", "correlation": "mail"},
            "correlation='mail': is only for a category, and '$all' is not one",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(store: Store, arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(InvalidArgument) as raised:
        Subscription(store, **{"stream_name": "account", **arguments})
    assert str(raised.value) == error


def test_its_repr_says_what_it_follows_and_where(store: Store) -> None:
    assert repr(Subscription(store, "account")) == f"<Subscription 'account' on {store!r}>"
