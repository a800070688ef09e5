"""Shared test code that rank processes import by name (pytest puts `tests/` on the path)."""
