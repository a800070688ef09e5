"""From finished or growing stores to samples and batches."""
