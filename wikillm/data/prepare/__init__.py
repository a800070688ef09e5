"""Prepare data: turn the sources in `data.*` into a finished token store."""
