"""Read samples and batches from finished or growing stores."""
