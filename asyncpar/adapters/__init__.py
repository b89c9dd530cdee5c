"""One neighbour per file: Kafka's client, Prometheus, HTTP. Foreign words and exceptions end here."""
