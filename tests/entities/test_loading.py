"""Loading: all events of the stream, folded in order, by a function or by methods."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import Any
from uuid import UUID

import pytest

from messagedb_sa import NO_STREAM, Entity, InvalidArgument, Loaded, Message, MessageNotDecodable, MessageTypes, Store
from messagedb_sa import applies as applies_

from ..support import statements_of
from .support import Account, Deposited, Opened, Withdrawn, account, add, fill, total, types


def test_the_state_is_that_after_all_events(each_store: Store) -> None:
    each_store.write_batch("account-1", [("Opened", {"owner": "Ada"}), ("Deposited", {"cents": 5})])
    state, version = each_store.load(account(), "1")
    assert (state.owner, state.balance, version) == ("Ada", 5, 1)
    assert state.seen == [f"{each.position}@{each.global_position}" for each in each_store.read("account-1")]


def test_without_events_it_is_the_beginning_at_no_version(each_store: Store) -> None:
    assert each_store.load(account(), "1") == Loaded(Account(), NO_STREAM)


def test_a_stream_of_any_length_is_loaded_page_by_page(store: Store) -> None:
    fill(store, 2_345)
    fill(store, 1_000, "2")
    sent = statements_of(store.engine)
    assert store.load(account(), "1")[1] == 2_344
    assert len(sent) == 3
    assert store.load(account(), "2").state.balance == 1_000


def test_hundred_events_are_one_round_trip(store: Store) -> None:
    fill(store, 100)
    sent = statements_of(store.engine)
    assert store.load(account(), "1").state.balance == 100
    assert len(sent) == 1


def test_no_connection_is_held_while_events_are_applied(store: Store) -> None:
    used: list[int] = []

    def note(state: int, message: Message) -> int:
        used.append(store.engine.pool.checkedout())  # type: ignore[attr-defined]
        return state

    fill(store, 1_001)
    store.load(Entity("account", int, note), "1")
    assert used == [0] * 1_001


def test_messages_of_types_without_a_method_change_nothing(store: Store) -> None:
    store.write_batch("account-1", [("Noted", None), ("Deposited", {"cents": 5}), ("Noted", [])])
    state, version = store.load(account(), "1")
    assert (state.balance, version) == (5, 2)


def test_older_events_are_upcast(store: Store) -> None:
    store.write("account-1", "TakenOut", {"amount": 2})
    assert store.load(account(), "1").state.balance == -200


def test_the_types_are_those_of_the_store_if_the_entity_has_none(store: Store) -> None:
    entity = Entity("account", Account)
    typed = Store(store.engine, types=types)
    typed.write("account-1", Deposited(5))
    assert typed.load(entity, "1").state.balance == 5
    with pytest.raises(InvalidArgument, match="must be registered in the types of the entity or the store"):
        store.load(entity, "1")


def test_the_types_of_the_entity_take_precedence(store: Store) -> None:
    other = MessageTypes()

    @other.register(name="Deposited")
    @dataclass
    class Paid:
        cents: int

    store.write("account-1", "Deposited", {"cents": 5})
    typed = Store(store.engine, types=other)
    assert typed.load(account(), "1").state.balance == 5
    assert isinstance(typed.read("account-1")[0].data, Paid)


def test_a_function_may_return_a_new_state(store: Store) -> None:
    @dataclass(frozen=True)
    class Frozen:
        balance: int = 0

    def apply(state: Frozen, message: Message) -> Frozen:
        return replace(state, balance=state.balance + message.data["cents"])

    fill(store, 3)
    assert store.load(Entity("account", Frozen, apply), "1") == Loaded(Frozen(3), 2)


def test_a_function_may_change_the_state_in_place(store: Store) -> None:
    fill(store, 3)
    entity: Entity[list[int]] = Entity("account", list, lambda state, message: state.append(message.position))
    assert store.load(entity, "1").state == [0, 1, 2]
    assert store.load(entity, "1").state == [0, 1, 2]


def test_an_event_may_make_the_state_another_class(store: Store) -> None:
    class Draft:
        @applies_("Published")
        def published(self, message: Message) -> Published:
            return Published()

    class Published(Draft):
        likes = 0

        @applies_("Liked")
        def liked(self, message: Message) -> None:
            self.likes += 1

    store.write_batch("post-1", [("Liked", {}), ("Published", {}), ("Liked", {}), ("Liked", {})])
    entity: Entity[Draft] = Entity("post", Draft)
    state, _ = store.load(entity, "1")
    assert isinstance(state, Published)
    assert state.likes == 2


def test_a_subclass_overrides_what_its_base_applies(store: Store) -> None:
    class Doubled(Account):
        def deposited(self, message: Message[Deposited]) -> None:
            self.balance += 2 * message.data.cents

    class Renamed(Account):
        @applies_(Deposited)
        def paid_in(self, message: Message[Deposited]) -> None:
            self.balance += 3 * message.data.cents

    fill(store, 1)
    for cls, balance in ((Account, 1), (Doubled, 2), (Renamed, 3)):
        assert store.load(Entity("account", cls, types=types), "1").state.balance == balance


def test_one_method_may_apply_several_types(store: Store) -> None:
    class Count:
        n = 0

        @applies_("Came")
        @applies_("Went")
        def count(self, message: Message) -> None:
            self.n += 1

    store.write_batch("door-1", [("Came", {}), ("Went", {}), ("Came", {}), ("Rang", {})])
    assert store.load(Entity("door", Count), "1").state.n == 3


def test_an_id_may_be_a_uuid_and_hold_any_characters(store: Store) -> None:
    id = UUID(int=1)
    store.write(f"total-{id}", "Added", {"n": 1})
    assert store.load(total(), id) == store.load(total(), str(id)) == (1, 0)
    for odd in ("a-b+c", "ü %s :x", "'"):
        store.write(f"total-{odd}", "Added", {"n": 2})
        assert store.load(total(snapshot_every=1), odd).state == 2
        assert total().stream_name(odd) == f"total-{odd}"


def test_the_state_that_is_handed_out_is_the_callers(store: Store) -> None:
    fill(store, 2)
    entity = account()
    store.load(entity, "1").state.seen.clear()
    assert len(store.load(entity, "1").state.seen) == 2


def test_an_error_of_apply_is_raised_as_it_is(store: Store) -> None:
    store.write("total-1", "Added", {"m": 1})
    with pytest.raises(KeyError, match="'n'"):
        store.load(total(), "1")


def test_an_event_that_cannot_be_decoded_is_an_error(store: Store) -> None:
    store.write_batch("account-1", [("Deposited", {"cents": 5}), ("Deposited", {"cents": "many"})])
    with pytest.raises(MessageNotDecodable) as error:
        store.load(account(), "1")
    assert error.value.position == 1


class Name(str, Enum):
    ACCOUNT = "account"


def test_a_category_may_be_a_member_of_an_enumeration(store: Store) -> None:
    fill(store, 1)
    entity = Entity(Name.ACCOUNT, Account, types=types)
    assert store.load(entity, "1").version == 0
    assert repr(entity) == "<Entity 'account' of Account>"


class Bare:
    pass


class Twice:
    @applies_("T")
    def one(self, message: Message) -> None: ...

    @applies_("T")
    def two(self, message: Message) -> None: ...


class ByClassAndName:
    @applies_(Deposited)
    def one(self, message: Message[Deposited]) -> None: ...

    @applies_("Deposited")
    def two(self, message: Message) -> None: ...


async def coroutine(*_: Any) -> None: ...


def generator(*_: Any) -> Any:
    yield


@pytest.mark.parametrize(
    ("arguments", "options", "text"),
    [
        (("account-1", int, add), {}, "category='account-1': must be a category"),
        (("", int, add), {}, "category='': must not be empty"),
        (("$all", int, add), {}, r"category='\$all'"),
        ((7, int, add), {}, "category=7: must be a string"),
        (("account", 0, add), {}, "begin=0: must be a function"),
        (("account", coroutine, add), {}, "begin=.*without async"),
        (("account", int, "add"), {}, "apply='add': must be a function"),
        (("account", int, coroutine), {}, "apply=.*without async"),
        (("account", int, generator), {}, "apply=.*without async or yield"),
        (("account", Bare), {}, "apply=None: must be a function, since Bare has no methods"),
        (("account", int), {}, "apply=None: must be a function, since int has no methods"),
        (("account", Account, add), {}, "apply=.*must not be given: Account has methods"),
        (("account", Twice), {}, "message_type='T': must be applied by one method, but Twice has one and two"),
        (
            ("account", ByClassAndName),
            {"types": types},
            "message_type='Deposited': must be applied by one method, but ByClassAndName has one and two",
        ),
        (("account", Account), {"types": [Opened]}, "types=.*must be a MessageTypes"),
        (("account", Account), {"types": MessageTypes()}, "message_type=.*must be registered in the types"),
        (("account", int, add), {"snapshot_every": 0}, "snapshot_every=0: must be between 1"),
        (("account", int, add), {"snapshot_every": "5"}, "snapshot_every='5': must be an integer"),
        (("account", Bare, add), {"snapshot_every": 5}, "begin=.*to write snapshots, must be a dataclass"),
        (("account", int, add), {"snapshot_every": 5, "state_version": 0}, "state_version=0: must be between 1"),
        (("account", int, add), {"state_version": 2}, "state_version=2: has no effect without snapshot_every"),
        (("account", int, add), {"cache": 0}, "cache=0: must be between 1"),
        (("account", int, add), {"cache": True}, "cache=True: must be an integer"),
    ],
)
def test_what_cannot_be_an_entity_is_refused(arguments: Any, options: Any, text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        Entity(*arguments, **options)


@pytest.mark.parametrize("message_type", [None, 7, Withdrawn(1)])
def test_applies_takes_a_name_or_a_class(message_type: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"message_type=.*: must be a message type, or a registered class"):
        applies_(message_type)


@pytest.mark.parametrize("method", [staticmethod(add), property(add), coroutine, generator])  # type: ignore[arg-type]
def test_applies_decorates_methods_only(method: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"method=.*: must be a"):
        applies_("T")(method)


@pytest.mark.parametrize("id", ["", None, 7, "x" * 3_000, "a\0"])
def test_an_id_that_no_stream_can_have_is_refused(store: Store, id: Any) -> None:
    sent = statements_of(store.engine)
    with pytest.raises(InvalidArgument, match=r"^id="):
        store.load(total(), id)
    with pytest.raises(InvalidArgument, match=r'entity=.*must be an Entity, such as Entity\("account", Account\)'):
        store.load("account", "1")  # type: ignore[arg-type]
    assert sent == []
