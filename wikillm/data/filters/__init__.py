"""What happens to a clean text before it is tokenized: conversion, quality rules, overlap with evaluation files, copies.

`settings` turns `data.*` into a small description (`Filters`) that travels to the workers and stands in the
fingerprint; `apply` does what it says, document by document. Finding copies takes two passes: `sign` describes every
document in the worker pool, `copies` decides which are dropped, and the drop-list is read by the build of the store.
"""
