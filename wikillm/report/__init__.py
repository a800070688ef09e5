"""One self-contained page about a run, from the files of its directory alone. Without torch."""
