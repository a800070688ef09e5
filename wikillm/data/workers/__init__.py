"""Processes that do the work: a pool, one exclusive holder at a time, progress."""
