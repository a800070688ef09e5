"""From files of text to a token store, and from the store to batches in an order that depends on nothing else."""
