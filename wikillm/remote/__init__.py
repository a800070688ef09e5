"""Other machines: names, environment, argument lists. Starts no process, imports no torch."""
