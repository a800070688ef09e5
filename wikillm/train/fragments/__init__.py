"""The state of a training engine as named tensors that depend on neither ranks nor engine."""
