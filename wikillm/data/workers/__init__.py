"""Worker processes: a pool, a lock that lets one process prepare at a time, progress lines."""
