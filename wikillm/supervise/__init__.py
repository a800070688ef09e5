"""Watches a run from outside its collectives: which ranks joined, which are lost or stalled.

Each rank has an agent, a small process that no interpreter lock of the training can block. Agents
talk to the coordinator in rank 0's agent; no torch, no DeepSpeed. Reasons:
docs/adr/0006-a-supervisor-outside-the-collectives.md.
"""
