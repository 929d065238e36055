"""Arguments of consumers that are refused."""

from __future__ import annotations

from typing import Any

import pytest

from messagedb_sa import AsyncConsumer, Consumer, InvalidArgument, Store


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"category": "account-1"}, "category='account-1': must be a category, without a -"),
        ({"category": ""}, "category='': must not be empty"),
        ({"category": "$all", "slots": 2}, "category='$all': must be a category for a consumer group or slots"),
        (
            {"handlers": None},
            "handlers=None: must be a function, or map message types to functions; pass a function without calling it",
        ),
        (
            {"handlers": {}},
            "handlers={}: must not be empty: map a message type to a function, or pass one function for all messages",
        ),
        ({"handlers": {"Opened": 1}}, "handlers['Opened']=1: must be a function; pass it without calling it"),
        ({"handlers": {1: print}}, "handlers=1: must be a string"),
        ({"identifier": ""}, "identifier='': must not be empty"),
        (
            {"identifier": "a-0-of-2"},
            "identifier='a-0-of-2': must not end like a member of a group (0-of-3); pass group_member= and group_size=",
        ),
        ({"group_member": 1}, "group_size=None: must be given with group_member=1"),
        ({"group_member": 2, "group_size": 2}, "group_member=2: must be between 0 and 1"),
        ({"slots": 0}, "slots=0: must be between 1 and 32767"),
        ({"slots": 2, "group_size": 2}, "group_size=2: must not be given with slots, which need no members"),
        ({"streams_without_id": "skip"}, "streams_without_id='skip': is only for consumer groups and slots"),
        ({"slots": 2, "streams_without_id": 2}, "streams_without_id=2: must be between 0 and 1"),
        (
            {"retry": 3},
            "retry=3: must be a tenacity.Retrying, also for an AsyncConsumer, such as "
            'Retrying(stop=stop_after_attempt(3)); to install tenacity: pip install "messagedb-sa[retry]"',
        ),
        ({"retries": 3}, "retries=3: must be an option of a consumer; did you mean retry=?"),
        (
            {"workers": 3},
            "workers=3: must be an option of a consumer; the options are group_member, group_size, slots, "
            "streams_without_id, retry, on_failure, position, positions, correlation, record_every, record_seconds, "
            "batch_size, poll_seconds, identifier, transactional",
        ),
        ({"correlation": "a-1"}, "correlation='a-1': must be a category, without a -"),
        ({"category": "$all", "correlation": "a"}, "correlation='a': is only for a category, not for $all"),
        ({"position": -1}, "position=-1: must be between 0 and 9223372036854775807"),
        ({"on_failure": "skip"}, 'on_failure=\'skip\': must be "stop" or "park"'),
        ({"position": "1"}, "position='1': must be an integer"),
        ({"record_every": 0}, "record_every=0: must be between 1 and 9223372036854775807"),
        ({"record_seconds": -1}, "record_seconds=-1: must be a finite number of seconds, 0 or more"),
        ({"batch_size": 0}, "batch_size=0: must be between 1 and 9223372036854775807"),
        ({"poll_seconds": float("inf")}, "poll_seconds=inf: must be a finite number of seconds, 0 or more"),
        ({"transactional": 1}, "transactional=1: must be True, False, sessionmaker(...) or a class of Session"),
    ],
)
def test_bad_arguments_are_refused_by_name(store: Store, options: dict[str, Any], error: str) -> None:
    arguments: dict[str, Any] = {"category": "account", "handlers": print, "identifier": "mailer", **options}
    with pytest.raises(InvalidArgument) as caught:
        Consumer(store, **arguments)
    assert str(caught.value) == error


def test_a_store_that_joined_a_transaction_has_no_consumers(store: Store) -> None:
    with store.engine.connect() as connection, pytest.raises(InvalidArgument, match="must be a Store on an Engine"):
        Consumer(Store(connection), "account", print)


def test_an_asynchronous_consumer_needs_an_asynchronous_store(store: Store) -> None:
    with pytest.raises(InvalidArgument, match="must be an AsyncStore on an AsyncEngine"):
        AsyncConsumer(store, "account", print)  # type: ignore[call-overload]
