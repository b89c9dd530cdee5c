"""Which functions of a module are handlers. There is no registry: the module itself is asked."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any

from asyncpar.topics import specs_of


def handler_functions(module: ModuleType) -> list[Callable[..., Any]]:
    """The functions defined in `module` that `@topic` decorates, in the order of their definition."""
    return [
        function
        for function in vars(module).values()
        if inspect.isfunction(function) and function.__module__ == module.__name__ and specs_of(function)
    ]
