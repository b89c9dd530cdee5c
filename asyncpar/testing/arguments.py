"""What a test gave to `TestApp`, checked: one clear line for each mistake, before anything starts.

Pure. Called by `TestApp`. Always: what belongs to `TestApp(...)` is a ConfigurationError; a wrong type in a
call is a TypeError and a number out of range a ValueError, as everywhere in Python.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path

from asyncpar.errors import ConfigurationError
from asyncpar.testing.memory_broker import MemoryBroker

_NEARLY_THE_SAME = 0.85
"""Above it two names differ by a slip: `ordrs` and `orders` (0.91), not `orders` and `orders-v2` (0.8)."""


def did_you_mean(name: str, known: Collection[str], otherwise: str) -> str:
    """A hint: the name among `known` that is most like `name`, or `otherwise`."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else otherwise


def checked_partitions(partitions: object) -> dict[str, int]:
    """`partitions=` of a TestApp: topics, and how many partitions each is to have."""
    if partitions is None:
        return {}
    if not isinstance(partitions, Mapping):
        raise ConfigurationError(
            f"TestApp(...): partitions = {partitions!r} is not allowed; give a number for each topic: "
            'partitions={"orders": 3}'
        )
    for topic, number in partitions.items():
        if not isinstance(topic, str):
            raise ConfigurationError(f"TestApp(...): partitions has {topic!r}, which is no topic's name")
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ConfigurationError(
                f"TestApp(...): partitions has {number!r} for topic {topic!r}; give a whole number from 1"
            )
    return dict(partitions)


def refuse_misspelt(unread: Collection[str], read: Collection[str]) -> None:
    """Refuse a topic of `partitions=` that nobody reads, with nearly the name of one that is not in it."""
    for topic in unread:
        near = difflib.get_close_matches(topic, read, n=1, cutoff=_NEARLY_THE_SAME)
        if near:
            raise ConfigurationError(
                f"TestApp(...): partitions has topic {topic!r}, which no handler reads; did you mean "
                f"{near[0]!r}? To have both, name both"
            )


def checked_broker(broker: object) -> MemoryBroker | None:
    """`broker=` of a TestApp."""
    if broker is None or isinstance(broker, MemoryBroker):
        return broker
    raise ConfigurationError(
        f"TestApp(...): broker = {broker!r} is no MemoryBroker; a real Kafka is given by its address: "
        'bootstrap_servers="localhost:9092"'
    )


def checked_path(toml: object) -> Path | None:
    """`toml=` of a TestApp."""
    if toml is None or isinstance(toml, Path):
        return toml
    if isinstance(toml, str):
        return Path(toml)
    raise ConfigurationError(f"TestApp(...): toml = {toml!r} is not allowed; give the path of a file")


def check_env(env: object) -> None:
    """`env=` of a TestApp."""
    if env is not None and not isinstance(env, Mapping):
        raise ConfigurationError(
            f"TestApp(...): env = {env!r} is not allowed; give variables by name, such as os.environ"
        )


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """An argument of a TestApp that has to be one of a few words."""
    if value not in choices:
        raise ConfigurationError(
            f"TestApp(...): {name} = {value!r} is not allowed; give {' or '.join(map(repr, choices))}"
        )


def check_whole_number(name: str, value: object, unit: str = "") -> None:
    """An optional whole number from 0. Raises TypeError, ValueError."""
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} is a whole number{unit}, not {value!r}")
    if value < 0:
        raise ValueError(f"{name} is a whole number{unit} from 0, not {value}")


def check_seconds(name: str, value: object) -> None:
    """An optional number of seconds. Raises TypeError, ValueError."""
    if value is None:
        return
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} is a number of seconds, not {value!r}")
    if not value >= 0:
        raise ValueError(f"{name} is a number of seconds from 0, not {value}")


def counted(number: int, thing: str) -> str:
    """`1 partition`, `2 partitions`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"
