"""Evaluate a model: held-out loss, bits per byte of any text, and multiple-choice accuracy."""
