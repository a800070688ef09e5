"""From a raw record to clean text."""
