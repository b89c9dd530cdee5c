"""Finding the App that `asyncpar run TARGET` means, and saying well why there is none.

The rules: X:Y is an App in module X, else the app of module X.Y; X alone, or a file, is its single App,
else its bare `@topic` functions in an implicit App. A module that is missing and a module that fails
while it is imported are different errors. Called by `run.py`; reads no settings, starts nothing.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from asyncpar.cli.tracebacks import innermost_place
from asyncpar.errors import AsyncparError, TargetError

if TYPE_CHECKING:
    from asyncpar.app import App

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Found:
    """The app to run, how to call it, and what the user should know about the search."""

    app: App
    name: str
    warnings: tuple[str, ...] = ()


class UserCodeError(TargetError):
    """The user's own code raised while it was imported or called; `cause` is what it raised."""

    def __init__(self, message: str, cause: BaseException) -> None:
        super().__init__(message)
        self.cause = cause


def find_app(target: str, *, app_dir: Path, factory: bool) -> Found:
    """The App that `target` names. Puts `app_dir` (or the file's folder) first on `sys.path`.

    Raises TargetError when there is none, UserCodeError when the user's code fails.
    """
    place, attribute = _split(target)
    is_file = _is_file_name(place)
    if not (is_file or all(place.split("."))):
        raise TargetError(f"target {target!r} names no module; write module, module:app or dir/file.py")
    if attribute.endswith("()"):
        raise TargetError(f"target {target}: a target is no call; write {target[:-2]} and add --factory")
    if is_file:
        module = _import_file(_absolute(place, app_dir), place)
    else:
        _put_first(app_dir)
        module = _import(place, target, app_dir)
    if attribute:
        return _named(module, attribute, target, factory)
    if factory:
        raise TargetError(f"--factory needs the function's name; write {target}:create_app, for example")
    return _only_app(module, target)


def _split(target: str) -> tuple[str, str]:
    """`X:Y` as (X, Y); the colon of a drive letter belongs to X."""
    place, colon, attribute = target.rpartition(":")
    if colon and not any(separator in attribute for separator in "/\\"):
        return place, attribute
    return target, ""


def _is_file_name(place: str) -> bool:
    return place.endswith(".py") or "/" in place or os.sep in place


def _absolute(place: str, app_dir: Path) -> Path:
    """A file's path: as written from the current folder, else from `app_dir`."""
    direct = Path(place).absolute()
    return direct if direct.exists() else (app_dir / place).absolute()


def _put_first(folder: Path) -> None:
    sys.path.insert(0, str(folder.absolute()))
    importlib.invalidate_caches()


# Importing -------------------------------------------------------------------------------------


def _import_file(path: Path, written: str) -> ModuleType:
    """The module of a file: in its package when its folder is one, else on its own."""
    if not path.is_file():
        names = [entry.name for entry in path.parent.glob("*.py")] if path.parent.is_dir() else []
        kind = "is a folder" if path.is_dir() else "does not exist"
        raise TargetError(f"file {written} {kind}; give the path of a Python file{_near(path.name, names)}")
    parts = [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    name = ".".join(parts)
    _put_first(folder)
    module = _import(name, written, folder)
    origin = getattr(module, "__file__", None)
    if origin is None or not path.samefile(origin):
        taken_by = origin or "Python itself"
        raise TargetError(
            f"file {written} cannot be imported: its name {name!r} is taken by {taken_by}; rename it"
        )
    return module


def _import(name: str, target: str, app_dir: Path) -> ModuleType:
    """Module `name`. TargetError when there is none, UserCodeError when its code fails."""
    try:
        return _user_code(lambda: importlib.import_module(name), f"importing {name}")
    except UserCodeError as error:
        if not _says_missing(error.cause, name):
            raise
        missing = str(getattr(error.cause, "name", name))
        where = f"in {app_dir.absolute()} or on the path of Python"
    parent, _, last = missing.rpartition(".")
    known = _submodules(sys.modules.get(parent)) if parent else _modules_in(app_dir)
    hint = _near(last, known) or "; check the spelling or give --app-dir"
    raise TargetError(f"target {target}: there is no module {missing} {where}{hint}") from None


def _says_missing(error: BaseException, name: str) -> bool:
    """True when `error` means that `name` (or a parent) does not exist, False when its code failed."""
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return False
    return f"{name}.".startswith(f"{error.name}.") and not innermost_place(error)


def _user_code(call: Callable[[], T], doing: str) -> T:
    """What `call` returns; UserCodeError for whatever the user's code raises, `sys.exit` included."""
    try:
        return call()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        place = innermost_place(error)
        at = f", {place}" if place else ""
        if isinstance(error, AsyncparError):
            raise TargetError(f"{error} ({doing}{at})") from error
        if isinstance(error, SystemExit):
            raise TargetError(
                f"{doing} called sys.exit{at}; guard it with if __name__ == '__main__'"
            ) from None
        text = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")
        raise UserCodeError(f"{doing} raised {text}{at}; fix it and start again", error) from error


# Choosing --------------------------------------------------------------------------------------


def _named(module: ModuleType, attribute: str, target: str, factory: bool) -> Found:
    """X:Y: an App (or its factory) in X, else the app of module X.Y, else an error with both tries."""
    from asyncpar.app import App

    value = _attribute(module, attribute)
    if factory:
        return Found(_made(value, module, attribute, target), target)
    if isinstance(value, App):
        return Found(value, target, _left_out(module, value))
    below = f"{module.__name__}.{attribute}"
    if hasattr(module, "__path__"):
        try:
            return _only_app(_import(below, target, Path()), target)
        except UserCodeError:
            raise
        except TargetError:
            if below in sys.modules:
                raise
    names = [name for name in vars(module) if not name.startswith("_")] + _submodules(module)
    raise TargetError(
        f"target {target}: {_not_an_app(module, attribute, value)}, and there is no module {below}"
        f"{_near(attribute, names) if value is None else ''}"
    )


def _attribute(module: ModuleType, path: str) -> object:
    value: object = module
    for part in path.split("."):
        value = getattr(value, part, None)
    return value


def _not_an_app(module: ModuleType, attribute: str, value: object) -> str:
    from asyncpar.topics import specs_of

    if value is None:
        return f"{module.__name__} has no App named {attribute}"
    if specs_of(value):
        return f"{attribute} in {module.__name__} is a handler (run its module: {module.__name__})"
    kind = "a function" if inspect.isroutine(value) else f"an object of type {type(value).__name__}"
    hint = " (if it returns an App, add --factory)" if callable(value) else ""
    return f"{attribute} in {module.__name__} is {kind}, not an App{hint}"


def _made(value: object, module: ModuleType, attribute: str, target: str) -> App:
    """The App that a factory returns."""
    from asyncpar.app import App

    if not callable(value) or isinstance(value, App):
        kind = "is an App already; leave --factory out" if isinstance(value, App) else "is no function"
        near = _near(attribute, [name for name, item in vars(module).items() if callable(item)])
        raise TargetError(
            f"target {target}: with --factory, {attribute} {kind}{'' if 'App' in kind else near}"
        )
    if inspect.iscoroutinefunction(value):
        raise TargetError(f"target {target}: the factory {attribute} is async; write it with a plain def")
    made: object = _user_code(value, f"calling {target}")
    if not isinstance(made, App):
        raise TargetError(f"target {target}: the factory returned {type(made).__name__}; return an App")
    return made


def _only_app(module: ModuleType, target: str) -> Found:
    """The single App of a module, else its bare `@topic` functions in an implicit App."""
    from asyncpar.app import App
    from asyncpar.discovery import handler_functions

    apps: dict[int, tuple[str, App]] = {}
    for name, value in vars(module).items():
        if isinstance(value, App):
            apps.setdefault(id(value), (name, value))
    if len(apps) > 1:
        names = [name for name, _ in apps.values()]
        choices = " or ".join(f"{module.__name__}:{name}" for name in names)
        raise TargetError(
            f"target {target}: there are several Apps in {module.__name__}; name one: {choices}"
        )
    if apps:
        [(name, app)] = apps.values()
        left_out = _left_out(module, app)
        if left_out:
            raise TargetError(
                f"target {target}: {left_out[0]}; use @{name}.topic or {name}.include(__name__)"
            )
        return Found(app, target)
    if not handler_functions(module):
        raise TargetError(
            f"target {target}: no App and no @topic function in {module.__name__}"
            f" ({getattr(module, '__file__', None) or 'a package without __init__.py'}); "
            f"decorate a function with @topic(...){_elsewhere(module)}"
        )
    app = App(module.__name__)
    app.include(module)
    return Found(app, target)


def _left_out(module: ModuleType, app: App) -> tuple[str, ...]:
    """A sentence about the module's handlers that no App of the module includes, or nothing."""
    from asyncpar.app import App
    from asyncpar.discovery import handler_functions

    apps = [value for value in vars(module).values() if isinstance(value, App)] or [app]
    included = {id(spec.function) for each in (*apps, app) for spec in each.handlers}
    names = [fn.__name__ for fn in handler_functions(module) if id(fn) not in included]
    if not names:
        return ()
    return (
        f"{', '.join(names)} in {module.__name__} carry @topic but are not part of the App and would not run",
    )


def _elsewhere(module: ModuleType) -> str:
    """Where the handlers may be instead: modules below this one."""
    below = _submodules(module)
    return f", or name a module below it: {', '.join(below[:5])}" if below else ""


def _submodules(module: ModuleType | None) -> list[str]:
    return [info.name for info in pkgutil.iter_modules(getattr(module, "__path__", []))]


def _modules_in(folder: Path) -> list[str]:
    return [info.name for info in pkgutil.iter_modules([str(folder)])]


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else ""
