"""Callbacks around the steps of HF's Trainer, one concern per file."""
