"""From files of text to a token store, and from the store to batches in a fixed order."""
