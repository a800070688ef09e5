"""Other machines: names, environment, argument lists. Starts nothing by itself, and imports no torch."""
