"""Go on with a coroutine whose first step was run by hand.

A worker runs a handler's first step with `send(None)`: a handler that never waits costs no await
at all, and the worker knows at once which handlers do wait.
"""

from __future__ import annotations

import types
from collections.abc import Coroutine, Generator
from typing import Any


@types.coroutine
def resume(coroutine: Coroutine[Any, Any, Any], waiting_for: Any) -> Generator[Any, Any, Any]:
    """Await the rest of `coroutine`, which has yielded `waiting_for`; returns its result.

    Passes the future up to the event loop unchanged, and what the loop sends or throws back down.
    """
    while True:
        try:
            sent = yield waiting_for
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as error:  # noqa: BLE001 - all of it belongs to the coroutine
            try:
                waiting_for = coroutine.throw(error)
            except StopIteration as end:
                return end.value
        else:
            try:
                waiting_for = coroutine.send(sent)
            except StopIteration as end:
                return end.value
