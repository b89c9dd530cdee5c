"""The asyncio shell: waits, decides nothing. One `GroupRuntime` per consumer group.

Only the tasks in here touch the core's state, all on one loop.
"""
