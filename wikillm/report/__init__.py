"""A self-contained page about one or several runs, from the files of their directories. Imports no
torch."""
