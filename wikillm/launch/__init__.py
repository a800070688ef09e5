"""One description of a run, rendered for a target (script, batch file, manifest). No torch."""
