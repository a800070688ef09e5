"""Checkpoints that are complete or not there: layout, manifest, the newest good one, retention. Torch-free."""
