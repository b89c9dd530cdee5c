"""Why targets are missed, in words: what keeps a workload from its target, and what it would take.

What lives here: a reason for each workload whose target has been missed, shown where it is missed. What never
does: figures, which are in the JSON. Called by `page_text.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

WHY_MISSED: Mapping[str, str] = MappingProxyType(
    {
        "p1": (
            "The ratio to a rival that was chosen as a target varies with the machine's speed at the "
            "moment: the raw loop itself does between 600,000 and 1,090,000 records a second here, and "
            "asyncpar is bound by Python's speed more than a rival is that awaits its broker."
        ),
        "p2": (
            "At 10 ms one loop has to begin, suspend and end so many calls a second that its thread "
            "computes all the time: a timer, a future and two turns of a task for each sleep are the "
            "handler's own, and are what the floor pays too. The engine's share of a suspended record "
            "(waking another worker, looking again when it ends) comes on top. uvloop makes the loop's "
            "part cheaper; more processes share it out. Where a rival waits with as many calls at a time, "
            "both are bound by the sleep itself: what nobody can pass is beside it."
        ),
        "p3": (
            "A slot that ends takes the next key that is ready, while the floor has a task for each key "
            "from the start; the last keys of a skewed load leave slots empty a little earlier or later "
            "from run to run."
        ),
        "p5": (
            "A latency at a steady rate on two cores has the broker, the sender and the loop wait for "
            "each other: the bare loop, which has no slots, keys or commits, misses it as well in the "
            "same runs. With default slots a burst waits for one; a core to spare, or more slots, "
            "shortens the tail."
        ),
        "p6": (
            "Under a load at full speed as much repeats as ended since the last commit that was "
            "acknowledged: a commit is due each 2,000 records or each second, and its answer takes its "
            "time on a broker that is busy with the same load. A smaller `commit_every` repeats less."
        ),
        "p7": (
            "Two cores have to run the broker and the parent too: `2 plain loops` side by side, which "
            "have no parent and keep no order, do not reach twice the rate of one either. On more cores "
            "the children have theirs to themselves."
        ),
        "p11": (
            "Each fetch and each commit looks at every partition, and the more there are the fewer "
            "records each brings at a time."
        ),
        "threads": (
            "A record goes to a thread and comes back: two hand-overs, each of which may wait for "
            "Python's lock. The bare pool is told once for a whole batch, and keeps no order."
        ),
        "busy_partition": (
            "The client asks a broker again for a partition once what it sent last is used up, and has "
            "nobody else's records to do meanwhile. asyncpar asks for more of a partition that alone has "
            "records; the raw loop, which does not, shows what that is worth."
        ),
    }
)
