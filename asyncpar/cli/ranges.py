"""Options that are numbers within bounds, and nothing that only looks like one.

Lives here: `FiniteRange`, in place of click's own `FloatRange`, whose comparisons let "nan" pass and whose
open ends let "inf". Called where the commands declare their options.
"""

from __future__ import annotations

import math
from typing import Any

import click


class FiniteRange(click.FloatRange):
    """As `click.FloatRange`, for finite numbers."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number; fails with click's own error, which names the option."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is no number within the range {self._describe_range()}.", param, ctx)
        return number
