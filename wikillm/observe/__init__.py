"""Measures a run and records the values. Only the memory of a GPU needs torch."""
