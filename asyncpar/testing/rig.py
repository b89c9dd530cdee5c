"""An app as a test runs it: its settings for tests, its consumers and handlers watched.

Lives here: which apps a test means, settings, and `Rig` (one app on a cluster). Never here: waiting,
sending. Called by `TestApp`. Always: the app is as it was when its test has ended, and nothing of the
surroundings (the environment, `asyncpar.toml`) is read unless the test names it.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias
from weakref import WeakSet

from asyncpar.app import App
from asyncpar.assembly import Rigging
from asyncpar.discovery import handler_functions
from asyncpar.errors import ConfigurationError
from asyncpar.groups import DeclaredGroup
from asyncpar.ports import Consumer, Producer
from asyncpar.runtime import letters
from asyncpar.runtime.handlers import Handler
from asyncpar.runtime.outbox import Departure
from asyncpar.settings import Settings
from asyncpar.settings_checks import check_names, checked, contradictions
from asyncpar.settings_kafka import SecuritySettings
from asyncpar.settings_sources import PROFILES, Loaded, load
from asyncpar.testing.cluster import Cluster
from asyncpar.testing.recording import Recording, recording
from asyncpar.testing.witness import Handled, Witness

Target: TypeAlias = App | ModuleType | str | Callable[..., Any]
"""What a test may run: an app; a module with one app or with bare `@topic` functions, or its name, such as
`__name__`; a `@topic` function.
"""

_PROFILE = "test"
_UNNAMED = "asyncpar"
"""The name of an app that was given none."""
_NOBODY, _CODE = "default", "App(...)"
_OF_PRODUCTION = frozenset({*SecuritySettings.model_fields, "bootstrap_servers", "http_port", "log_config"})
_NO_FILE = Path(os.devnull)
# Smaller than the default, so that a test may have a short session without a word about heartbeats.
_BEFORE_CHECKS = ("heartbeat_interval_ms",)
_rigged: WeakSet[App] = WeakSet()
"""The apps that are on a rig now."""


def apps_of(target: Target | Sequence[Target]) -> list[App]:
    """The apps that `target` means; functions and modules without an app share one. ConfigurationError."""
    apps: list[App] = []
    loose = App("test")
    for given in [target] if isinstance(target, str) or not isinstance(target, Sequence) else target:
        one = _module(given) if isinstance(given, str) else given
        if isinstance(one, App):
            apps.append(one)
        elif isinstance(one, ModuleType) and (app := _app_in(one)) is not None:
            apps.append(app)
        else:
            loose.include(one)
    each = list(dict.fromkeys(apps))
    return [*each, loose] if loose.handlers or not each else each


def _module(name: str) -> ModuleType:
    """The imported module `name`: a test names its own, or one that it has imported."""
    module = sys.modules.get(name)
    if module is None:
        raise ConfigurationError(
            f"TestApp({name!r}): no module of that name is imported; give the app, the module or the "
            "function itself, without quotes"
        )
    return module


def _app_in(module: ModuleType) -> App | None:
    """The app of `module`, by the rules of `asyncpar run`."""
    apps = {id(value): (name, value) for name, value in vars(module).items() if isinstance(value, App)}
    if not apps:
        return None
    names = sorted(name for name, _ in apps.values())
    if len(apps) > 1:
        choices = " or ".join(f"{module.__name__}.{name}" for name in names)
        raise ConfigurationError(f"module {module.__name__} has several apps; test one of them: {choices}")
    [(name, app)] = apps.values()
    included = {id(spec.function) for spec in app.handlers}
    left_out = [one.__name__ for one in handler_functions(module) if id(one) not in included]
    if left_out:
        raise ConfigurationError(
            f"{', '.join(left_out)} in {module.__name__} carry @topic but are not part of its app; "
            f"use @{name}.topic or {name}.include(__name__)"
        )
    return app


def settings_for(app: App, given: Mapping[str, object], env: Mapping[str, str], toml: Path | None) -> Loaded:
    """What `app` runs with in a test: `given`, environment, TOML, the app's own, the profile "test".

    What belongs to production is left out of the app's own: servers, credentials, HTTP port, log files. A
    value of the profile gives way where it contradicts one that somebody chose. Raises SettingError.
    """
    check_names(given, "TestApp(...)")
    for name, value in given.items():
        checked(name, value, "TestApp(...)")
    own = {name: value for name, value in app.given_settings.items() if name not in _OF_PRODUCTION}
    early = {name: PROFILES[_PROFILE][name] for name in _BEFORE_CHECKS if name not in own}
    # A file must be named, or ./asyncpar.toml would be read.
    loaded = load(cli=given, env=env, toml=toml or _NO_FILE, app_values={**early, **own})
    smaller = {
        name: value
        for name, value in PROFILES[_PROFILE].items()
        if loaded.origins[name] == (_CODE if name in early else _NOBODY)
    } | ({} if loaded.settings.group else {"group": "test"})
    settings = loaded.settings.model_copy(update=smaller)
    for contradiction in contradictions(settings):
        smaller = {name: value for name, value in smaller.items() if name not in contradiction.knobs}
    return replace(
        loaded,
        settings=loaded.settings.model_copy(update=smaller),
        origins={**loaded.origins, **dict.fromkeys(smaller, f"profile {_PROFILE}")},
    )


class _Member(NamedTuple):
    recording: Recording
    witness: Witness


class Rig:
    """One app on a cluster, watched. `handled` takes down every attempt."""

    def __init__(self, app: App, loaded: Loaded, cluster: Cluster, handled: list[Handled]) -> None:
        self.app = app
        self.groups: tuple[DeclaredGroup, ...] = ()
        self._loaded = loaded
        self._cluster = cluster
        self._handled = handled
        self._members: dict[str, _Member] = {}
        self._producers = 0
        self._ended: asyncio.Task[None] | None = None

    @property
    def settings(self) -> Settings:
        """Those of the test."""
        return self._loaded.settings

    @property
    def name(self) -> str:
        """The app's, or what tells an unnamed one from others."""
        groups = " and ".join(group.name for group in self.groups) or self.settings.group
        return f"the app of group {groups}" if self.app.name == _UNNAMED else f"app {self.app.name}"

    def prepare(self, stack: AsyncExitStack) -> None:
        """Put the app on the rig until `stack` ends. Raises ConfigurationError for what it cannot run."""
        if self.app in _rigged:
            raise ConfigurationError(
                f"{self.name} runs in a TestApp already: two members of a group are two App objects, so let "
                "a function make them: TestApp(make_app(), broker=...)"
            )
        _rigged.add(self.app)
        stack.callback(_rigged.discard, self.app)
        rigging = Rigging(self._consumer, self._producer, self._watched, self._departed)
        stack.enter_context(self.app.rigged(self._loaded, rigging))
        self.groups = tuple(self.app.groups())

    async def start(self, stack: AsyncExitStack) -> None:
        """Run the app until `stack` ends; raises what `async with app` raises."""
        await stack.enter_async_context(self.app)
        self._ended = asyncio.create_task(self.app.wait())
        stack.push_async_callback(self._forget)

    async def _forget(self) -> None:
        assert self._ended is not None
        self._ended.cancel()
        # What ended the app is raised by the app's own end.
        with suppress(asyncio.CancelledError, Exception):
            await self._ended

    def check_alive(self) -> None:
        """Raise what ended the app, if it has ended."""
        assert self._ended is not None
        if self._ended.done():
            self._ended.result()
            raise ConfigurationError(f"{self.name} was stopped: nothing is handled any more")

    def member(self, group: str) -> str:
        """What the app's member of `group` is called in its history."""
        return self._member(group).recording.member

    # -- what the app is given ---------------------------------------------------------------

    def _consumer(self, group: str) -> Consumer:
        return self._member(group).recording(group)

    def _producer(self) -> Producer:
        self._producers += 1
        name = f"{self.settings.group or self.app.name}-producer-{self._producers}"
        return self._cluster.producers(name, self.settings)()

    def _departed(self, group: str, departure: Departure) -> None:
        self._member(group).witness.departed(departure)

    def _watched(self, group: str, handler: Handler) -> Handler:
        return self._member(group).witness.watched(handler)

    def _member(self, group: str) -> _Member:
        if group not in self._members:
            histories = self._cluster.histories
            name, history = histories.new_member(group), histories.of(group)
            recorded = recording(self._cluster.consumers(name, self.settings), history, name)
            witness = Witness(group, name, history, self._handled, recorded.lease_from)
            self._members[group] = _Member(recorded, witness)
        return self._members[group]


def takes(group: DeclaredGroup, topic: str) -> bool:
    """Whether `group` reads `topic`, by its name or by a pattern."""
    names, pattern = group.subscription.topics, group.subscription.pattern
    return topic in names or (pattern is not None and pattern.fullmatch(topic) is not None)


def dead_letter_topics(group: DeclaredGroup) -> list[str]:
    """Where the records of the topics that `group` names go when they are given up."""
    return [
        topic
        for handler in group.handlers
        if handler.dead_letter is not None
        for topic in letters.dead_letter_topics(handler.dead_letter, handler.spec.topics)
    ]
