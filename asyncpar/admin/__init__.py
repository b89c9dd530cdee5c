"""What an operator does to dead letters: look, pick, replay, purge. Nothing here runs inside an app."""
