"""Fused operations, each beside a plain PyTorch reference; `dispatch` says which one runs."""
