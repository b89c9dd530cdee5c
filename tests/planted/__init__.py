"""Planted bugs: the rig has to catch them, or it proves nothing.

`python -m tests.planted` lives simulated lives with each bug of `bugs` in the engine, one bug at a time,
until a check finds it, and prints which check did, and in how many lives. The product knows nothing of it: a
bug is a change of a module's source that is made while it is imported, in a process of its own.
"""
