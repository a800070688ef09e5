"""Inspect, verify, export and import token stores."""
