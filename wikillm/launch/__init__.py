"""One description of a run, rendered for a target (a script, a batch file, a manifest) and started there. No torch."""
