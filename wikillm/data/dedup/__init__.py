"""Which documents are duplicates, found by a first pass over the sources."""
