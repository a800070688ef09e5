"""Looks at this machine and writes down what is there. Judges nothing, raises nothing that a check could tell better."""
