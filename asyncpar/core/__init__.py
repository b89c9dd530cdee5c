"""The pure core: decides what is done, what may run next, what to ask for and what to commit.

No await, clock, log, random or Kafka in here. Time is an argument (`now`, monotonic seconds), as
is chance (`u`, uniform in [0, 1)). Only the runtime's tasks call it, all on one loop.
"""
