"""The handler of `asyncpar demo --cpu`: what computes, in child processes.

In a file of its own, because each child imports it: nothing but what it needs. Put into an app, for the
demo's own topic, by `demo_app.py`.
"""

from __future__ import annotations

from hashlib import sha256

from asyncpar.topics import topic

NAME = "hashes"
_TIMES = 1_000
"""About half a millisecond, of which another thread of Python would get nothing."""


# Children go by the name; the topic is made anew for each demo and declared there.
@topic("asyncpar-demo", name=NAME, executor="process")
def hashes(value: bytes) -> None:
    """CPU-bound: a hash of the hash of the hash, and so on."""
    for _ in range(_TIMES):
        value = sha256(value).digest()
