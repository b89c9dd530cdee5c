"""Child processes of a real member on a real Kafka, killed at random: `python -m tests.workers`."""
