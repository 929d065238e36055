"""The options of a consumer, checked."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypedDict

from sqlalchemy import URL

from messagedb_sa import _arguments as arguments
from messagedb_sa import stream_name as names
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.store import Store
from messagedb_sa.store._consumer_streams import ConsumerKey, position_stream
from messagedb_sa.store._operations import ALL

if TYPE_CHECKING:
    from tenacity import Retrying

StreamsWithoutId: TypeAlias = "int | Literal['refuse', 'skip']"
OnFailure: TypeAlias = "Literal['stop', 'park']"
Begin: TypeAlias = "int | Literal['end'] | None"
PositionsHome: TypeAlias = "Literal['table', 'stream'] | None"

RECORD_SECONDS = 5.0
BATCH_SIZE = 1000
POLL_SECONDS = 0.1
_RECORD_EVERY = 1000


class ConsumerOptions(TypedDict, total=False):
    """The options of Consumer and AsyncConsumer, for functions that pass them on. Consumer describes them."""

    group_member: int | None
    group_size: int | None
    slots: int | None
    streams_without_id: StreamsWithoutId
    retry: Retrying | None
    on_failure: OnFailure
    position: Begin
    positions: PositionsHome
    correlation: str | None
    record_every: int | None
    record_seconds: float
    batch_size: int
    poll_seconds: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What a consumer was told. With slots, ``group_size`` is their number, and ``group_member`` is None."""

    category: str
    identifier: str | None
    transactional: bool
    group_member: int | None
    group_size: int | None
    has_slots: bool
    streams_without_id: StreamsWithoutId
    retry: Retrying | None
    parks: bool
    begin: Begin
    positions: PositionsHome
    correlation: str | None
    record_every: int
    delivers_together: bool
    record_seconds: float
    batch_size: int
    poll_seconds: float

    @classmethod
    def checked(
        cls,
        category: str,
        identifier: str | None,
        *,
        transactional: bool,
        group_member: int | None,
        group_size: int | None,
        slots: int | None,
        streams_without_id: StreamsWithoutId,
        retry: Retrying | None,
        on_failure: OnFailure,
        position: Begin,
        positions: PositionsHome,
        correlation: str | None,
        record_every: int | None,
        record_seconds: float,
        batch_size: int,
        poll_seconds: float,
    ) -> Settings:
        """The arguments are those of Consumer. Raises InvalidArgument."""
        category = arguments.category("category", category)
        identifier = None if identifier is None else arguments.text("identifier", identifier)
        if ConsumerKey.parsed(identifier) != ConsumerKey(identifier):
            reason = "must not end like a member of a group (0-of-3); pass group_member= and group_size="
            raise InvalidArgument("identifier", identifier, reason)
        member, size = _group(group_member, group_size, slots)
        if size is not None and category == ALL:
            raise InvalidArgument("category", category, "must be a category for a consumer group or slots")
        # The last member's or slot's stream has the longest name.
        stream = position_stream(category, ConsumerKey(identifier, None if size is None else size - 1, size))
        if too_long := arguments.too_long(stream):
            argument = "category" if identifier is None else "identifier"
            reason = f"the name of the stream for its positions {too_long}"
            raise InvalidArgument(argument, identifier or category, reason)
        if on_failure not in ("stop", "park"):
            raise InvalidArgument("on_failure", on_failure, 'must be "stop" or "park"')
        if positions not in (None, "table", "stream"):
            raise InvalidArgument("positions", positions, 'must be "table", "stream" or None')
        if position is not None and position != "end":
            # The first global position is 1.
            position = max(1, arguments.integer("position", position, minimum=0))
        every = arguments.integer("record_every", _RECORD_EVERY if record_every is None else record_every, minimum=1)
        correlation = None if correlation is None else arguments.category("correlation", correlation)
        if correlation is not None and category == ALL:
            raise InvalidArgument("correlation", correlation, f"is only for a category, not for {ALL}")
        return cls(
            category=category,
            identifier=identifier,
            transactional=transactional,
            group_member=member,
            group_size=size,
            has_slots=slots is not None,
            streams_without_id=_streams_without_id(streams_without_id, size),
            retry=_retrying(retry),
            parks=on_failure == "park",
            begin=position,
            positions=positions,
            correlation=correlation,
            record_every=every,
            delivers_together=transactional and record_every is not None and every > 1,
            record_seconds=arguments.seconds("record_seconds", record_seconds),
            batch_size=arguments.integer("batch_size", batch_size, minimum=1),
            poll_seconds=arguments.seconds("poll_seconds", poll_seconds),
        )

    @property
    def name(self) -> str:
        return " ".join(each for each in (self.category, self.identifier) if each)

    @property
    def described(self) -> str:
        """For a repr: what tells this consumer from others."""
        shown = [repr(self.category)]
        if self.identifier is not None:
            shown.append(repr(self.identifier))
        if self.has_slots:
            shown.append(f"slots={self.group_size}")
        elif self.group_size is not None:
            shown.append(f"group_member={self.group_member} group_size={self.group_size}")
        if self.transactional:
            shown.append("transactional")
        return " ".join(shown)

    def key(self, member: int | None) -> ConsumerKey:
        return ConsumerKey(self.identifier, member, self.group_size)


def _group(member: object, size: object, slots: object) -> tuple[int | None, int | None]:
    if slots is None:
        return arguments.consumer_group(member, size, ("group_member", "group_size"))
    for argument, value in (("group_member", member), ("group_size", size)):
        if value is not None:
            raise InvalidArgument(argument, value, "must not be given with slots, which need no members")
    return None, arguments.integer("slots", slots, minimum=1, maximum=names.MAX_GROUP_SIZE)


def _streams_without_id(value: Any, size: int | None) -> StreamsWithoutId:
    if size is None:
        if value != "refuse":
            raise InvalidArgument("streams_without_id", value, "is only for consumer groups and slots")
        # Without a group there is nothing to refuse.
        return "skip"
    if value == "refuse":
        return "refuse"
    if value == "skip":
        return "skip"
    return arguments.integer("streams_without_id", value, minimum=0, maximum=size - 1)


def _retrying(retry: Any) -> Any:
    if retry is None:
        return None
    # If the caller has one, tenacity is imported.
    tenacity = sys.modules.get("tenacity")
    if tenacity is None or not isinstance(retry, tenacity.Retrying):
        # An AsyncRetrying would return at once, as if the handler had succeeded.
        reason = (
            "must be a tenacity.Retrying, also for an AsyncConsumer, such as Retrying(stop=stop_after_attempt(3)); "
            'to install tenacity: pip install "messagedb-sa[retry]"'
        )
        raise InvalidArgument("retry", retry, reason)
    return retry


def refuse_unknown(options: Mapping[str, object]) -> None:
    """The same as Python's TypeError, but with the way out."""
    for name, value in options.items():
        known = [*ConsumerOptions.__annotations__, "identifier", "transactional"]
        similar = get_close_matches(name, known, n=1)
        reason = f"did you mean {similar[0]}=?" if similar else f"the options are {', '.join(known)}"
        raise InvalidArgument(name, value, f"must be an option of a consumer; {reason}")


def unfit_store(store: object, cls: str, reason: str = "a consumer commits its own transactions") -> InvalidArgument:
    """The error for what a class, such as AsyncConsumer, cannot run on."""
    is_async = cls.startswith("Async")
    other = cls.removeprefix("Async") if is_async else f"Async{cls}"
    wanted, engine = ("AsyncStore", "AsyncEngine") if is_async else ("Store", "Engine")
    reason = f"must be {'an' if is_async else 'a'} {wanted} on an {engine}: {reason}"
    # By name: the other class cannot always be imported.
    names = {each.__name__ for each in type(store).__mro__}
    if names & {"Store", "AsyncStore"} - {wanted}:
        reason += f"; for this store, use {other}"
    elif isinstance(store, (str, URL)):
        reason += f"; for a URL, pass {wanted}.from_url(url)"
    elif engine in names:
        reason += f"; pass {wanted}(engine)"
    elif isinstance(getattr(store, "store", None), Store):
        reason += "; pass its attribute store"
    return InvalidArgument("store", store, reason)


def session_factory(transactional: object, maker: type, session: type) -> Any:
    """What makes the sessions for handlers; None if they get connections, or nothing."""
    if isinstance(transactional, bool):
        return None
    if getattr(transactional, "kw", {}).get("binds"):
        raise InvalidArgument(
            "transactional", transactional, "must not have binds: writes on another engine are not in the transaction"
        )
    if isinstance(transactional, maker) or (isinstance(transactional, type) and issubclass(transactional, session)):
        return transactional
    reason = f"must be True, False, {maker.__name__}(...) or a class of {session.__name__}"
    if isinstance(transactional, session):
        reason += ", which makes a session for each transaction; not a session"
    raise InvalidArgument("transactional", transactional, reason)
