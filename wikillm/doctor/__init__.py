"""Are machines fit for a run? One file for each question: it measures and judges."""
