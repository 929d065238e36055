"""Blocking code in greenlets that are used again: as in new ones, but for the time."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest
from greenlet import GreenletExit, getcurrent  # type: ignore[import-untyped]
from sqlalchemy.util import await_only

from messagedb_sa._drivers import greenlets
from messagedb_sa._drivers.greenlets import in_greenlet

variable: ContextVar[Any] = ContextVar("variable")


@pytest.fixture(autouse=True)
def none_idle() -> None:
    greenlets._idle.greenlets.clear()


async def warm() -> None:
    """Return when there is an idle greenlet."""
    await in_greenlet(int)
    await asyncio.sleep(0)
    assert len(greenlets._idle.greenlets) == 1


def in_task(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    async def awaited() -> None:
        await warm()
        await body()

    asyncio.run(awaited())


def test_one_call_after_the_other_has_the_same_greenlet() -> None:
    async def body() -> None:
        first, second = await in_greenlet(getcurrent), await in_greenlet(getcurrent)
        assert first is second is greenlets._idle.greenlets[0]
        assert getcurrent() is not first

    in_task(body)


def test_calls_at_the_same_time_have_one_each_and_some_are_kept() -> None:
    async def body() -> None:
        release = asyncio.Event()

        def work(number: int) -> tuple[int, Any]:
            await_only(release.wait())
            return number, getcurrent()

        calls = [asyncio.ensure_future(in_greenlet(work, number)) for number in range(200)]
        await asyncio.sleep(0)
        release.set()
        done = await asyncio.gather(*calls)
        assert [number for number, _ in done] == list(range(200))
        assert len({id(each) for _, each in done}) == 200
        assert len(greenlets._idle.greenlets) == greenlets._MOST_IDLE

    in_task(body)


def test_an_error_is_raised_as_it_is_and_the_greenlet_is_used_again() -> None:
    async def body() -> None:
        error = LookupError("as it is")

        def fail() -> None:
            await_only(asyncio.sleep(0))
            raise error

        (idle,) = greenlets._idle.greenlets
        with pytest.raises(LookupError) as caught:
            await in_greenlet(fail)
        assert caught.value is error
        assert await in_greenlet(getcurrent) is idle

    in_task(body)


@pytest.mark.parametrize("waits", [False, True])
def test_what_ends_a_greenlet_is_raised_too(waits: bool) -> None:
    async def body() -> None:
        def leave() -> None:
            if waits:
                await_only(asyncio.sleep(0))
            raise GreenletExit

        with pytest.raises(GreenletExit):
            await in_greenlet(leave)
        assert await in_greenlet(lambda: 7) == 7

    in_task(body)


def test_cancelling_reaches_the_function_which_may_wait_before_it_ends() -> None:
    async def body() -> None:
        waits, cleaned = asyncio.Event(), []

        async def told() -> None:
            waits.set()
            await asyncio.Event().wait()

        def work() -> None:
            try:
                await_only(told())
            finally:
                await_only(asyncio.sleep(0))
                cleaned.append(True)

        (idle,) = greenlets._idle.greenlets
        call = asyncio.ensure_future(in_greenlet(work))
        await waits.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert cleaned == [True]
        assert await in_greenlet(getcurrent) is idle

    in_task(body)


def test_a_call_that_is_closed_while_it_waits_takes_its_greenlet_along() -> None:
    async def body() -> None:
        ended = []

        def work() -> None:
            try:
                await_only(asyncio.sleep(0))
            finally:
                ended.append(True)

        call = in_greenlet(work)
        call.send(None)
        call.close()
        assert ended == [True]
        assert await in_greenlet(lambda: 7) == 7

    in_task(body)


def test_a_tasks_variables_are_the_functions_and_are_not_kept() -> None:
    class Large:
        pass

    async def body() -> None:
        def work() -> None:
            assert variable.get() == "the task's"
            variable.set("the function's")
            await_only(asyncio.sleep(0))
            assert variable.get() == "the function's"

        async def task(value: Any) -> None:
            variable.set("the task's")
            await in_greenlet(work)
            assert variable.get() == "the function's"
            variable.set(value)
            assert await in_greenlet(variable.get) is value

        large = Large()
        watched = weakref.ref(large)
        await asyncio.ensure_future(task(large))
        del large
        # The event loop has the task's variables until its next round.
        await asyncio.sleep(0)
        gc.collect()
        assert watched() is None
        assert variable.get(None) is None

    in_task(body)


def test_a_greenlet_made_deep_in_recursion_can_recurse_as_far_as_others() -> None:
    limit = sys.getrecursionlimit()

    def recurse(depth: int) -> int:
        return 0 if depth == 0 else 1 + recurse(depth - 1)

    async def deep(depth: int, body: Callable[[], Coroutine[Any, Any, None]]) -> None:
        await (deep(depth - 1, body) if depth else body())

    asyncio.run(deep(limit // 2, warm))
    assert len(greenlets._idle.greenlets) == 1
    assert asyncio.run(in_greenlet(recurse, limit * 6 // 10)) == limit * 6 // 10

    def run_deep(depth: int) -> None:
        if depth:
            run_deep(depth - 1)
        else:
            asyncio.run(in_greenlet(await_only, asyncio.sleep(0)))

    # On an event loop that is itself deep in it, none is made to be kept.
    greenlets._idle.greenlets.clear()
    run_deep(limit // 2)
    assert not greenlets._idle.greenlets


def test_an_event_loop_may_go_on_in_another_thread() -> None:
    loop = asyncio.new_event_loop()
    loop.run_until_complete(warm())
    (idle,) = greenlets._idle.greenlets
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(loop.run_until_complete(in_greenlet(getcurrent))))
    thread.start()
    thread.join()
    assert found[0] is not idle
    assert loop.run_until_complete(in_greenlet(getcurrent)) is idle
    loop.close()


def test_a_process_ends_with_idle_greenlets_in_its_threads() -> None:
    program = """
import asyncio, threading
from sqlalchemy.util import await_only
from messagedb_sa._drivers.greenlets import _idle, in_greenlet

async def some():
    for _ in range(3):
        await asyncio.gather(*(in_greenlet(lambda: await_only(asyncio.sleep(0))) for _ in range(10)))
    assert len(_idle.greenlets) >= 10

threads = [threading.Thread(target=lambda: asyncio.run(some())) for _ in range(20)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
asyncio.run(some())
print("ended")
"""
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-W", "error", "-c", program], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")
