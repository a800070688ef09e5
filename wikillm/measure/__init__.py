"""Measures matrix products, copies, attention and all-reduce of this machine, with torch."""
