"""Dead letters on a real Kafka: members that are killed on the way to them, a downstream that is out.

`python -m tests.letters kills` kills as often as asked for, `python -m tests.letters outage` lasts as long as
asked for; `test_kills.py` and `test_outage.py` are the bounded parts.
"""
