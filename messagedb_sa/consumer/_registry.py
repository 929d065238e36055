"""Handlers: functions by message type, registered with a decorator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar, overload

from messagedb_sa import _arguments as arguments
from messagedb_sa.errors import InvalidArgument
from messagedb_sa.message import Message

_A = TypeVar("_A")
_B = TypeVar("_B")
_C = TypeVar("_C")
_P = ParamSpec("_P")
_R = TypeVar("_R")
_Function = TypeVar("_Function", bound="Callable[..., object]")


class Handlers(Mapping["type[Any] | str", "Callable[..., Any]"]):
    """The handlers of a consumer by message type: a mapping that a decorator fills.

    Register all of them before you make the consumer, which looks at them once.
    """

    def __init__(self) -> None:
        self._functions: dict[type[Any] | str, Callable[..., Any]] = {}

    @overload
    def on(  # type: ignore[overload-overlap]
        self, message_type: type[_A], /
    ) -> Callable[[Callable[Concatenate[Message[_A], _P], _R]], Callable[Concatenate[Message[_A], _P], _R]]: ...

    @overload
    def on(  # type: ignore[overload-overlap]
        self, message_type: type[_A], second: type[_B], /
    ) -> Callable[
        [Callable[Concatenate[Message[_A] | Message[_B], _P], _R]],
        Callable[Concatenate[Message[_A] | Message[_B], _P], _R],
    ]: ...

    @overload
    def on(  # type: ignore[overload-overlap]
        self, message_type: type[_A], second: type[_B], third: type[_C], /
    ) -> Callable[
        [Callable[Concatenate[Message[_A] | Message[_B] | Message[_C], _P], _R]],
        Callable[Concatenate[Message[_A] | Message[_B] | Message[_C], _P], _R],
    ]: ...

    @overload
    def on(self, *message_types: type[Any] | str) -> Callable[[_Function], _Function]: ...

    def on(self, *message_types: type[Any] | str) -> Any:
        """Register the decorated function for these message types: names, or classes of the store's ``types``.

        For a class, such as Deposited, the function takes a ``Message[Deposited]``; type checkers check that, for up to
        three classes. In a transactional consumer it also takes the Connection or Session. Returns the function.

        Raises InvalidArgument if a message type has a function already.
        """
        if not message_types:
            raise InvalidArgument("message_types", message_types, "must not be empty: pass names or classes")
        keys = [_checked(each) for each in message_types]

        def register(function: _Function) -> _Function:
            if not callable(function):
                raise InvalidArgument("function", function, "must be a function; pass it without calling it")
            for number, key in enumerate(keys):
                if key in self._functions or key in keys[:number]:
                    raise InvalidArgument("message_types", key, "must not be given twice; it has a handler already")
            self._functions.update(dict.fromkeys(keys, function))
            return function

        return register

    def __getitem__(self, message_type: type[Any] | str) -> Callable[..., Any]:
        return self._functions[message_type]

    def __iter__(self) -> Iterator[type[Any] | str]:
        return iter(self._functions)

    def __len__(self) -> int:
        return len(self._functions)

    def __repr__(self) -> str:
        shown = (each.__name__ if isinstance(each, type) else each for each in self._functions)
        return f"<{type(self).__name__}: {', '.join(shown) or 'none registered'}>"


def _checked(message_type: object) -> type[Any] | str:
    if isinstance(message_type, type):
        return message_type
    if callable(message_type):
        reason = "must be a message type, or a class: @handlers.on(Deposited)"
        raise InvalidArgument("message_types", message_type, reason)
    return arguments.text("message_types", message_type)
