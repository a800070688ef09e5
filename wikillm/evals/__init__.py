"""How good a model is on held-out text: loss per token, bits per byte, and the unigram baseline beside them."""
