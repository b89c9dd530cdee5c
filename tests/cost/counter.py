"""Counts what Python executes for a record: bytecode instructions and calls of C functions, by function.

A count is the same on every machine and in every run, so it can be compared with one that was kept, where
seconds cannot. Counted is the package itself, and what its functions call of the standard library or of
generated code; never the event loop around it, `asyncpar.testing`, or the tests' handlers and fakes. What a C
function does inside is one call here, however long it takes: see `tests/core/test_cost.py` for that.

Called by the workloads beside it. Always: the garbage collector rests while something is counted, and whoever
traced before (coverage) traces again afterwards.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import asyncpar

PACKAGE = str(Path(asyncpar.__file__).parent) + "/"
NEVER = (PACKAGE + "testing/", str(Path(__file__).parent.parent) + "/")

Trace = Callable[[FrameType, str, Any], Any]


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one record, by function: instructions, and calls of C functions."""

    instructions: dict[str, float]
    c_calls: dict[str, float]


@dataclass(slots=True)
class _Spent:
    """By one function."""

    code: CodeType
    instructions: int = 0
    c_calls: int = 0


class Counter:
    """Counts within `counting()`, as often as that is entered."""

    def __init__(self) -> None:
        self._spent: dict[int, _Spent] = {}
        self._traces: dict[int, Trace] = {}
        """By the id of a code object: hashing the object itself takes longer than what is counted."""

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        """What runs in this thread meanwhile counts; of calls under way, from their next resumption on."""
        traced, profiled = sys.gettrace(), sys.getprofile()
        gc.disable()
        sys._getframe().f_trace_opcodes = True  # in 3.12 there are none where no frame wanted any before
        sys.setprofile(self._profile)
        sys.settrace(self._called)
        try:
            yield
        finally:
            sys.settrace(traced)
            sys.setprofile(profiled)
            gc.enable()

    def cost(self, records: int) -> Cost:
        """Of each of the `records` that were counted."""
        instructions: dict[str, float] = {}
        c_calls: dict[str, float] = {}
        for spent in self._spent.values():
            name = _name_of(spent.code)
            instructions[name] = instructions.get(name, 0.0) + spent.instructions / records
            c_calls[name] = c_calls.get(name, 0.0) + spent.c_calls / records
        return Cost(instructions, c_calls)

    def _called(self, frame: FrameType, event: str, arg: object) -> Trace | None:
        """A function was called or resumed: trace its instructions if it counts."""
        code = frame.f_code
        if not self._counts(frame, code):
            return None
        trace = self._traces.get(id(code))
        if trace is None:
            spent = self._spent[id(code)] = _Spent(code)
            trace = self._traces[id(code)] = _trace_into(spent)
        frame.f_trace_lines = False
        frame.f_trace_opcodes = True
        return trace

    def _counts(self, frame: FrameType, code: CodeType) -> bool:
        if code.co_filename.startswith(NEVER):
            return False
        if code.co_filename.startswith(PACKAGE):
            return True
        caller = frame.f_back
        return caller is not None and self._is_traced(caller)

    def _is_traced(self, frame: FrameType) -> bool:
        trace = self._traces.get(id(frame.f_code))
        return trace is not None and frame.f_trace is trace

    def _profile(self, frame: FrameType, event: str, arg: object) -> None:
        if event == "c_call" and self._is_traced(frame):
            self._spent[id(frame.f_code)].c_calls += 1


def _trace_into(spent: _Spent) -> Trace:
    def trace(frame: FrameType, event: str, arg: object) -> Trace:
        if event == "opcode":
            spent.instructions += 1
        return trace

    return trace


def _name_of(code: CodeType) -> str:
    """`runtime/workers.py HandlerPool._work`; in brackets what is not of the package."""
    if code.co_filename.startswith(PACKAGE):
        return f"{code.co_filename.removeprefix(PACKAGE)} {code.co_qualname}"
    return f"({Path(code.co_filename).name.strip('<>')} {code.co_qualname})"
