"""What can be a handler: a callable whose body has run when its call, or what it is awaited for, returns."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Generator
from functools import partial
from typing import Any

from messagedb_sa.errors import InvalidArgument

# What @contextmanager and @asynccontextmanager make.
_CONTEXT_MANAGERS: tuple[type, ...] = (
    contextlib._GeneratorContextManager,
    contextlib._AsyncGeneratorContextManager,
)
_ARGUMENTS = {1: "one argument, the message", 2: "two arguments, the message and the connection or session"}


def check_handler(argument: str, handler: Any, *, takes: int, awaited: bool) -> None:
    """Refuse a handler that cannot be one for certain. ``check_result`` finds the others when they are called.

    ``takes`` is the number of arguments that it is called with; ``awaited``: it may be a coroutine function.
    """
    function = _function(handler)
    if _makes_context_manager(function):
        reason = "must not be a context manager: its body does not run when it is called; remove the decorator"
        raise InvalidArgument(argument, handler, reason)
    if inspect.isasyncgenfunction(function) or (inspect.isgeneratorfunction(function) and not _is_coroutine(function)):
        reason = "must not be a generator function: its body does not run when it is called; remove yield"
        raise InvalidArgument(argument, handler, reason)
    if _is_coroutine(function) and not awaited:
        reason = "must be a plain function: a Consumer does not await handlers; use def, or an AsyncConsumer"
        raise InvalidArgument(argument, handler, reason)
    if not _can_take(handler, takes):
        raise InvalidArgument(argument, handler, f"must take {_ARGUMENTS[takes]}")


def check_result(result: object) -> None:
    """Raise TypeError if the handler returned something that still has to run: nothing was handled."""
    if isinstance(result, Coroutine):
        # Otherwise Python warns that it was never awaited.
        result.close()
        raise TypeError("the handler returned a coroutine that nobody awaits: only an AsyncConsumer awaits, and once")
    if isinstance(result, Awaitable):
        raise TypeError(f"the handler returned a {type(result).__name__}: only an AsyncConsumer awaits, and once")
    if isinstance(result, (Generator, AsyncGenerator, *_CONTEXT_MANAGERS)):
        raise TypeError(f"the handler returned a {type(result).__name__}, whose body has not run: remove yield from it")


def own_cancelled(error: BaseException) -> Exception:
    """The handler's failure if it raised CancelledError although nobody cancels the consumer."""
    failure = RuntimeError(
        "the handler raised CancelledError, but nobody cancelled the consumer: catch it in the handler"
    )
    failure.__cause__ = error
    return failure


def is_coroutine_function(handler: Any) -> bool:
    return _is_coroutine(_function(handler))


def _function(handler: Any) -> Any:
    """The function that is called in the end, through partials, methods and ``__call__``."""
    while True:
        if isinstance(handler, partial):
            handler = handler.func
        elif inspect.ismethod(handler) or isinstance(handler, staticmethod):
            handler = handler.__func__
        elif isinstance(handler, type) or inspect.isroutine(handler):
            return handler
        else:
            call = type(handler).__call__
            # An object may tell that its plain __call__ returns a coroutine.
            if not inspect.isfunction(call) or inspect.iscoroutinefunction(handler):
                return handler
            return call


def _is_coroutine(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return inspect.iscoroutinefunction(function) or bool(
        inspect.iscode(code) and code.co_flags & inspect.CO_ITERABLE_COROUTINE
    )


def _makes_context_manager(function: Any) -> bool:
    # The function that the decorator returns is one of contextlib's. So is one that runs in a context manager.
    generator = getattr(function, "__wrapped__", None)
    return getattr(function, "__globals__", None) is vars(contextlib) and (
        inspect.isgeneratorfunction(generator) or inspect.isasyncgenfunction(generator)
    )


def _can_take(handler: Any, number: int) -> bool:
    if hasattr(_function(handler), "__signature__"):
        # Set by a decorator, and perhaps not how the handler is called.
        return True
    try:
        # Not the signature of what a decorator has wrapped, since it may pass other arguments.
        signature = inspect.signature(handler, follow_wrapped=False)
    except Exception:  # noqa: BLE001 - written in C, or with annotations that cannot be evaluated
        return True
    try:
        signature.bind(*[None] * number)
    except TypeError:
        return False
    return True
