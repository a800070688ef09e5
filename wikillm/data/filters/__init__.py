"""What happens to a clean text before it is tokenized: conversion, quality rules, overlap with
evaluation files, dropping of duplicates.

`settings` turns `data.*` into a picklable description (`Filters`) that is part of the fingerprint.
`apply` carries it out for each document. `drop_list` reads what `data/dedup/` found.
"""
