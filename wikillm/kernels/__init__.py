"""Fused operations with plain PyTorch references; `dispatch` chooses the one that runs."""
