"""Clean rebalances under load: members join and leave, one every second or two, and no record runs twice.

`python -m tests.rebalances` makes as many changes as asked for; `test_changes.py` is the bounded part.
"""
