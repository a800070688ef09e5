"""Held-out text: loss per token, bits per byte, and the unigram baseline."""
