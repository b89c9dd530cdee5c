"""What must be true of a handler before a child process can run it: checked at start, one error each.

A child gets no function: it imports the module and looks the name up, and finds the same function and the
same `@topic` there. Here is told apart what cannot be found that way.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias

from asyncpar.executors.lane_child import ChildWork, imported
from asyncpar.policies import refuse
from asyncpar.topic_checks import is_async_callable
from asyncpar.topics import TopicSpec

ProcessLifespan: TypeAlias = Callable[[], AbstractContextManager[object]]
"""Entered once in each child; what it yields is `Context.state` there."""


def child_work(
    spec: TopicSpec, group: str, timeout_ms: int | None, process_lifespan: ProcessLifespan | None = None
) -> ChildWork:
    """What a child needs to know to run `spec`; `timeout_ms` as the settings have it.

    Raises HandlerError for what a child could not import or run.
    """
    where = spec.where
    if is_async_callable(spec.function):
        refuse(where, 'executor="process" cannot run `async def`; write `def`, or leave executor= out')
    if spec.decoder is not None and is_async_callable(spec.decoder):
        refuse(
            where, 'an async decoder= needs an event loop, executor="process" has none; write it with `def`'
        )
    module, qualname = _importable(where, "the function", spec.function)
    lifespan = None
    if process_lifespan is not None:
        lifespan = ":".join(_importable(where, "process_lifespan", process_lifespan))
        _check_lifespan(where, process_lifespan)
    return ChildWork(
        module=module,
        qualname=qualname,
        handler=spec.name,
        group=group,
        timeout_ms=timeout_ms,
        tombstones=spec.tombstones,
        on_decode_error=spec.on_decode_error,
        lifespan=lifespan,
    )


def _importable(where: str, what: str, function: object) -> tuple[str, str]:
    """Module and qualified name by which a child finds `function`. Raises HandlerError."""
    if not isinstance(function, types.FunctionType):
        kind = "a method" if isinstance(function, types.MethodType) else f"a {type(function).__name__}"
        refuse(where, f"{what} is {kind}, which a child process cannot import; write a `def` in a module")
    module, qualname = function.__module__, function.__qualname__
    name = f"{what} {module}.{qualname}"
    if "<lambda>" in qualname:
        refuse(where, f"{name} is a lambda, which a child process cannot import; write a `def` in a module")
    if "<locals>" in qualname:
        refuse(
            where,
            f"{name} is made inside of a function, where a child cannot find it; move it into its module",
        )
    if module == "__main__":
        fix = "move it into a module of its own, and import it"
        refuse(
            where, f"{name} stands in the program itself, which has another name in a child process; {fix}"
        )
    try:
        found = imported(module, qualname)
    except (ImportError, AttributeError) as error:
        refuse(
            where,
            f"a child process cannot import {name}: {error}; keep it under the name that it has in its `def`",
        )
    if found is not function:
        fix = "put @topic on top of other decorators, and use the name once"
        refuse(where, f"{name} is another object than the one that the name leads to; {fix}")
    return module, qualname


def _check_lifespan(where: str, lifespan: ProcessLifespan) -> None:
    """A context manager, not async, without parameters. Raises HandlerError."""
    inner = inspect.unwrap(lifespan)
    if inspect.iscoroutinefunction(inner) or inspect.isasyncgenfunction(inner):
        refuse(where, "process_lifespan must be synchronous, a child has no event loop; use @contextmanager")
    if inspect.isgeneratorfunction(lifespan):
        refuse(where, "process_lifespan is a generator; put contextlib.contextmanager on it")
    try:
        inspect.signature(lifespan).bind()
    except TypeError:
        refuse(
            where, "process_lifespan is called without arguments; give its parameters defaults or remove them"
        )
