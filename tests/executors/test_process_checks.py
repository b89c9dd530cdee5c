"""What a child cannot import or run is refused at start, each with a reason of one line."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from asyncpar.errors import HandlerError
from asyncpar.executors.lane import ChildWork
from asyncpar.executors.process_checks import child_work
from asyncpar.records import RawRecord
from asyncpar.topics import TopicSpec, specs_of, topic
from tests.executors import child_handlers


def plain(value: bytes) -> None:
    """Nothing."""


@contextlib.contextmanager
def good_lifespan() -> Iterator[int]:
    """Works."""
    yield 1


@contextlib.asynccontextmanager
async def async_lifespan() -> AsyncIterator[None]:
    """Needs a loop."""
    yield


@contextlib.contextmanager
def lifespan_of(name: str) -> Iterator[None]:
    """Needs an argument."""
    yield


def bare_generator() -> Iterator[None]:
    """No context manager."""
    yield


class Holder:
    """Things that are no functions of the module."""

    @contextlib.contextmanager
    def method(self) -> Iterator[None]:
        """Needs an instance."""
        yield

    @staticmethod
    def static(value: bytes) -> None:
        """A function that a child finds."""


def shouting(function: Callable[..., None]) -> Callable[..., None]:
    """A decorator that leaves another object under the function's name."""

    @functools.wraps(function)
    def shout(value: bytes) -> None:
        function(value.upper())

    return shout


@shouting
@topic("t")
def covered(value: bytes) -> None:
    """Its @topic stands below."""


def spec_of(function: Callable[..., Any], **options: Any) -> TopicSpec:
    """A declaration for `function` that leaves the function as it is."""
    return TopicSpec(function=function, name="h", topics=("t",), **options)


def test_work_names_what_a_child_needs() -> None:
    """Module, name, and what the settings changed; the function found there is the same."""
    (spec,) = specs_of(child_handlers.typed)
    changed = spec.override(tombstones="skip", on_decode_error="skip")
    assert child_work(changed, "billing", 500, good_lifespan) == ChildWork(
        module="tests.executors.child_handlers",
        qualname="typed",
        handler="typed",
        group="billing",
        timeout_ms=500,
        tombstones="skip",
        on_decode_error="skip",
        lifespan=f"{__name__}:good_lifespan",
    )


def test_what_can_be_found_by_its_name_is_taken() -> None:
    """A static function of a class, a decoder that is a lambda: the child gets both with the module."""
    assert (
        child_work(spec_of(Holder.static, decoder=lambda name, raw: 1), "g", None).qualname == "Holder.static"
    )


def _local() -> Callable[..., None]:
    def inside(value: bytes) -> None:
        raise AssertionError

    return inside


async def _coroutine_function(value: bytes) -> None:
    raise AssertionError


async def _async_decoder(name: str, raw: RawRecord) -> bytes:
    raise AssertionError


@pytest.mark.parametrize(
    ("function", "options", "problem"),
    [
        (_coroutine_function, {}, "cannot run `async def`; write `def`"),
        (plain, {"decoder": _async_decoder}, "async decoder= needs an event loop"),
        (lambda value: None, {}, "is a lambda"),
        (_local(), {}, "is made inside of a function"),
        (Holder().method, {}, "is a method"),
        (functools.partial(plain), {}, "is a partial"),
        (
            specs_of(covered.__wrapped__)[0].function,
            {},
            "is another object than the one that the name leads to",
        ),  # type: ignore[attr-defined]
    ],
    ids=["async", "async decoder", "lambda", "local", "method", "partial", "covered"],
)
def test_a_handler_that_a_child_cannot_run_is_refused(
    function: Callable[..., Any], options: dict[str, Any], problem: str
) -> None:
    """The handler's name, what is wrong, and what to write instead."""
    with pytest.raises(HandlerError, match=problem) as caught:
        child_work(spec_of(function, **options), "g", None)
    assert str(caught.value).startswith("handler h: ")
    assert "\n" not in str(caught.value)


def test_a_handler_in_the_program_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A child knows `__main__` under another name."""
    monkeypatch.setattr(plain, "__module__", "__main__")
    with pytest.raises(HandlerError, match="stands in the program itself.*a module of its own"):
        child_work(spec_of(plain), "g", None)


@pytest.mark.parametrize(("module", "name"), [("tests.no_such_module", "plain"), (__name__, "renamed")])
def test_a_name_that_leads_nowhere_is_refused(
    module: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module is not there, or has no such name."""
    monkeypatch.setattr(plain, "__module__", module)
    monkeypatch.setattr(plain, "__qualname__", name)
    with pytest.raises(HandlerError, match=f"a child process cannot import the function {module}.{name}: "):
        child_work(spec_of(plain), "g", None)


def test_a_module_that_fails_is_not_taken_for_one_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that was replaced by something without the name."""
    monkeypatch.setitem(sys.modules, "tests.replaced", ModuleType("tests.replaced"))
    monkeypatch.setattr(plain, "__module__", "tests.replaced")
    with pytest.raises(HandlerError, match="has no attribute 'plain'"):
        child_work(spec_of(plain), "g", None)


@pytest.mark.parametrize(
    ("lifespan", "problem"),
    [
        (lambda: None, "process_lifespan .* is a lambda"),
        (Holder().method, "process_lifespan is a method"),
        (contextlib.nullcontext(), "process_lifespan is a nullcontext"),
        (async_lifespan, "process_lifespan must be synchronous"),
        (lifespan_of, "process_lifespan is called without arguments"),
        (bare_generator, "process_lifespan is a generator; put contextlib.contextmanager on it"),
    ],
    ids=["lambda", "method", "object", "async", "argument", "generator"],
)
def test_a_lifespan_that_a_child_cannot_enter_is_refused(lifespan: Any, problem: str) -> None:
    """It is looked up like the handler, and called without arguments."""
    with pytest.raises(HandlerError, match=problem):
        child_work(spec_of(plain), "g", None, lifespan)
