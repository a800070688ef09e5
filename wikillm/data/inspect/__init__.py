"""Look into a store, convert it, and describe it."""
