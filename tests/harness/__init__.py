"""What tests share that must be importable by name in rank processes (pytest puts `tests/` on the path)."""
