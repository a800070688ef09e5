"""The judgements: facts in, verdict out. No check looks at the machine."""
