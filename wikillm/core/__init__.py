"""Errors, units, files, locks, ranks, log. Imports no other room and no torch."""
