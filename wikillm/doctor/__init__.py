"""Are machines fit for a run? One file for each question: it gathers facts and judges them."""
