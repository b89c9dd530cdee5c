"""What the fields of rules may be: the checks that the pure parts' frozen rules make of themselves.

Never here: what a rule means. Always: a ValueError of one line that says whose field it is, its value and
what is allowed; the caller makes it an error of the user's declaration.
"""

from __future__ import annotations

MOST = 2**31 - 1
"""Of every whole number: 24 days in milliseconds, and more records than one process counts in a window."""


def check_whole(owner: str, field: str, value: object, unit: str, least: int = 1) -> None:
    """`value` is a whole number from `least` to `MOST`; `unit` says of what. Raises ValueError."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
        raise ValueError(f"{owner}: {field}={value!r} must be a whole number from {least} to {MOST} ({unit})")


def check_real(owner: str, field: str, value: object, unit: str, least: float, most: float) -> None:
    """`value` is a number from `least` to `most`, and not NaN; `unit` says of what. Raises ValueError."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{owner}: {field}={value!r} must be a number from {least:g} to {most:g} ({unit})")
