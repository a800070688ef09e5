"""What a run measures, and where it goes. Needs torch only for the memory of a GPU."""
