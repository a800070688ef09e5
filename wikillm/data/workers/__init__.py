"""Worker processes: a pool, a lock for one preparing process at a time, progress."""
