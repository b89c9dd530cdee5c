"""Tests of asyncpar; a package, so that tests import their helpers as `tests.kafka_tools` and the like."""
