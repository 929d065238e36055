"""Consumer groups with fixed members."""

from __future__ import annotations

from typing import Any

import pytest

from messagedb_sa import Consumer, GroupChanged, Message, Store, StreamWithoutId
from messagedb_sa.stream_name import consumer_group_member

from ..support import consumer_on, numbers
from .support import write


def test_the_members_of_a_group_have_positions_of_their_own(each_store: Store) -> None:
    write(each_store, 30)
    handled: list[Message] = []
    for member in range(2):
        mine: list[Message] = []
        consumer = consumer_on(each_store, "account", mine.append, "mailer", group_member=member, group_size=2)
        assert consumer.run_until_caught_up() == len(mine)
        assert consumer.run_until_caught_up() == 0
        assert {consumer_group_member(message.stream_name, 2) for message in mine} <= {member}
        handled += mine
    assert sorted(numbers(handled)) == list(range(30))
    streams = {message.stream_name for message in each_store.read("account:position")}
    assert streams <= {"account:position-mailer-0-of-2", "account:position-mailer-1-of-2"}


def test_a_stream_without_an_id_stops_a_group_before_it_is_skipped(each_store: Store) -> None:
    write(each_store, 3)
    each_store.write("account", "Even", {"n": 3})
    write(each_store, 3, first=4)
    handled: list[Message] = []
    for member in range(2):
        with pytest.raises(StreamWithoutId, match=r"stream 'account' has no id.* position 4\)") as caught:
            consumer_on(
                each_store, "account", handled.append, "mailer", group_member=member, group_size=2
            ).run_until_caught_up()
        assert caught.value.message.data == {"n": 3}
    assert sorted(numbers(handled)) == [0, 1, 2]


@pytest.mark.parametrize("by", [0, 1, "skip"])
def test_a_group_can_handle_streams_without_an_id_in_one_member_or_skip_them(each_store: Store, by: Any) -> None:
    write(each_store, 3)
    each_store.write("account", "Even", {"n": 3})
    write(each_store, 3, first=4)
    handled: dict[int, list[Message]] = {0: [], 1: []}
    for member, mine in handled.items():
        consumer_on(
            each_store,
            "account",
            mine.append,
            "m",
            group_member=member,
            group_size=2,
            streams_without_id=by,
            batch_size=2,
        ).run_until_caught_up()
        assert numbers(mine) == sorted(numbers(mine))
        assert (3 in numbers(mine)) is (by == member)
    everything = {n for mine in handled.values() for n in numbers(mine)}
    assert everything == ({0, 1, 2, 4, 5, 6} if by == "skip" else {0, 1, 2, 3, 4, 5, 6})


@pytest.mark.parametrize(
    ("before", "position"),
    [({}, 31), ({"slots": 2}, 31), ({"group_member": 1, "group_size": 2}, 11)],
    ids=["alone", "slots", "one member"],
)
def test_another_number_of_members_is_refused_without_a_start(
    store: Store, before: dict[str, Any], position: int
) -> None:
    streams = [f"account-{n}" for n in (0, 1, 2)]
    assert [consumer_group_member(stream, 2) for stream in streams] == [1, 0, 1]
    for n in range(30):
        store.write(streams[n // 10 if n < 27 else 1], "Opened", {"n": n})
    Consumer(store, "account", lambda _: None, "mailer", **before).run_until_caught_up()
    with pytest.raises(GroupChanged) as caught:
        Consumer(store, "account", print, "mailer", slots=3).run_until_caught_up()
    assert caught.value.position == position
    assert f"Pass position={position} to continue" in str(caught.value)
    again: list[Message] = []
    Consumer(store, "account", again.append, "mailer", slots=3, position=position).run_until_caught_up()
    assert sorted(numbers(again)) == list(range(position - 1, 30))
    # Slots without a message recorded where they start, too.
    assert Consumer(store, "account", print, "mailer", slots=3).run_until_caught_up() == 0
    assert [status.lag for status in store.consumers("account") if status.group_size == 3] == [0, 0, 0]
