"""Real faults on a real Kafka: processes that are killed and frozen, brokers that go, networks that fail.

`python -m tests.chaos` runs as much of it as asked for; `test_chaos.py` is the bounded part of the suite.
"""
