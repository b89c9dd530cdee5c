"""All planted bugs, in the order of the table."""

from __future__ import annotations

from tests.planted.bugs_bridge import IN_BRIDGE
from tests.planted.bugs_core import IN_CORE
from tests.planted.bugs_endings import IN_ENDINGS
from tests.planted.bugs_letters import IN_LETTERS
from tests.planted.bugs_runtime import IN_RUNTIME

BUGS = (*IN_CORE, *IN_RUNTIME, *IN_ENDINGS, *IN_LETTERS, *IN_BRIDGE)
