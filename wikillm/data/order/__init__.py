"""The order of samples: which tokens make up the n-th sample, as a pure function of the seed."""
