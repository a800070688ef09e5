"""Is this machine, or are these machines, fit for the run? Facts are gathered first, judged by pure functions after."""
