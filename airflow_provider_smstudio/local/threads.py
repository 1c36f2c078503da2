"""Calls from the threads of tests into the thread of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def run_on(loop: asyncio.AbstractEventLoop, function: Callable[[], T]) -> T:
    """Call a function in the thread of a running loop, and wait until its effects are complete.

    In the loop's own thread, as in a callback of a request, call the function directly.
    """
    try:
        own = asyncio.get_running_loop()
    except RuntimeError:
        own = None
    if own is loop:
        return function()
    return asyncio.run_coroutine_threadsafe(_call(function), loop).result()


async def _call(function: Callable[[], T]) -> T:
    result = function()
    # A cancelled task, and a transport that is closed, end in the next rounds of the loop.
    for _ in range(3):
        await asyncio.sleep(0)
    return result
