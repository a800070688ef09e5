"""Completions of text: samples during training, and `wikillm generate` afterwards."""
