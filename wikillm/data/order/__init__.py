"""Which tokens are the n-th sample: pure functions of the seed and the numbers of tokens."""
