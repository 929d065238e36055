"""Folds events into a state: by the application's function, or by the methods of the state's class."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from inspect import isfunction
from typing import Any, TypeAlias

from messagedb_sa._message_types import RegisteredTypes
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.message import Message

APPLIES = "_messagedb_applies"
"""The attribute of a decorated method: the message types that it applies."""

_Apply: TypeAlias = "Callable[[Any, Message[Any]], Any]"


class Folding:
    """How the events of an entity change its state. ``types`` have the names of the classes in ``applies``."""

    def __init__(self, apply: _Apply | None, state_class: type, types: RegisteredTypes) -> None:
        self._apply = apply
        self._types = types
        self._methods: dict[type, dict[str, _Apply]] = {}
        if apply is None:
            self.check(state_class)
            self._methods_of(state_class)
        elif _decorated(state_class):
            reason = f"must not be given: {state_class.__name__} has methods that are decorated with applies"
            raise InvalidArgument("apply", apply, reason)

    @staticmethod
    def check(state_class: type) -> None:
        if not _decorated(state_class):
            reason = f"must be a function, since {state_class.__name__} has no methods that are decorated with applies"
            raise InvalidArgument("apply", None, reason)

    def fold(self, state: Any, messages: Iterable[Message]) -> Any:
        """The state after these messages. It may be the same object, changed."""
        apply = self._apply
        cls: type | None = None
        methods: Mapping[str, _Apply] = {}
        for message in messages:
            if self._apply is None:
                if state.__class__ is not cls:
                    cls = state.__class__
                    methods = self._methods_of(cls)
                apply = methods.get(message.type)
                if apply is None:
                    continue
            new = apply(state, message)  # type: ignore[misc]
            if new is not None:
                state = new
        return state

    def _methods_of(self, cls: type) -> Mapping[str, _Apply]:
        # An event may make the state another class.
        methods = self._methods.get(cls)
        if methods is None:
            names = _decorated(cls, lambda message_type: self._name_of(cls, message_type))
            methods = self._methods[cls] = {key: getattr(cls, name) for key, name in names.items()}
        return methods

    def _name_of(self, cls: type, message_type: type | str) -> str:
        if isinstance(message_type, str):
            return str.__str__(message_type)
        known = self._types.by_class.get(message_type)
        if known is None:
            reason = f"must be registered in the types of the entity or the store, since {cls.__name__} applies it"
            raise InvalidArgument("message_type", message_type, reason)
        return known.name


def _decorated(cls: type, key_of: Callable[[type | str], Any] = lambda message_type: message_type) -> dict[Any, str]:
    """For each type of message, the name of the method that applies it. Subclasses take precedence.

    ``key_of`` gives the key in the result for a message type, which may be a class.
    """
    found: dict[Any, str] = {}
    for base in reversed(cls.__mro__):
        own: dict[Any, str] = {}
        for name, value in vars(base).items():
            for message_type in getattr(value, APPLIES, ()) if isfunction(value) else ():
                key = key_of(message_type)
                if key in own:
                    reason = f"must be applied by one method, but {base.__name__} has {own[key]} and {name}"
                    raise InvalidArgument("message_type", message_type, reason)
                own[key] = name
        found |= own
    return found
