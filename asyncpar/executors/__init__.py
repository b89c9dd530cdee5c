"""Where a handler runs: on the loop, or in threads of the app's own. Both give the runtime an `Invoke`."""
