"""Faults in real runs, and what the next start makes of them. `campaign.py` is the command."""
