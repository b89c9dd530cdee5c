"""Which functions are handlers, and what they declare. No registry: modules and functions are asked."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

from asyncpar.errors import ConfigurationError
from asyncpar.topics import TopicDecorator, TopicSpec, specs_of

P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., Any])


def handler_functions(module: ModuleType) -> list[Callable[..., Any]]:
    """The functions defined in `module` that `@topic` decorates, in the order of their definition."""
    return [
        function
        for function in vars(module).values()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and specs_of(function)
    ]


def specs_in(source: ModuleType | str | Callable[..., Any]) -> list[TopicSpec]:
    """What a module, a module's name or a decorated function declares. ConfigurationError for nothing."""
    if isinstance(source, str):
        source = sys.modules.get(source) or importlib.import_module(source)
    if isinstance(source, ModuleType):
        functions = handler_functions(source)
        if not functions:
            raise ConfigurationError(
                f"include({source.__name__}): the module has no function decorated with @topic"
            )
        return [spec for function in functions for spec in specs_of(function)]
    specs = specs_of(source)
    if not specs:
        raise ConfigurationError(f"include({source!r}): it is not decorated with @topic")
    return list(specs)


def including(
    declare: Callable[P, TopicDecorator], add: Callable[[Sequence[TopicSpec]], None]
) -> Callable[P, Callable[[F], F]]:
    """As `declare`, and what it declares is handed to `add` too."""

    def declaring(*args: P.args, **kwargs: P.kwargs) -> Callable[[F], F]:
        decorate = declare(*args, **kwargs)

        def include(function: F) -> F:
            before = specs_of(function)
            decorated = decorate(function)
            add([spec for spec in specs_of(decorated) if not any(spec is known for known in before)])
            return decorated

        return include

    return declaring
