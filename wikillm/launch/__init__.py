"""Renders the description of a run for a target as a script, batch file or manifest. No torch."""
