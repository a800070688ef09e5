"""Fused operations, each beside the plain PyTorch that says what it computes; `dispatch` says which one runs."""
