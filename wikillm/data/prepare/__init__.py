"""From `data.*` to a finished token store."""
