"""Names of other machines, their environment, ssh's argument lists. Starts no process, no torch."""
