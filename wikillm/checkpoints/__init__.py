"""Checkpoints that are complete or absent: layout, manifest, lineage, retention. No torch."""
