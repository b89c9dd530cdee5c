"""Where a handler runs: the loop, threads of the app's own, or child processes. Each gives an `Invoke`."""
