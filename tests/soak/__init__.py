"""Half an hour at half of what a member can do: memory, descriptors, threads, tasks and lag must not grow.

`python -m tests.soak` runs it; `test_soak.py` is the bounded part of the suite.
"""
