"""Watches a run from outside its collectives: which ranks joined, which are lost or stalled.

Each rank has an agent, a small process that the rank's interpreter lock cannot block. All agents
report to the coordinator, a thread in rank 0's agent. The room imports neither torch nor DeepSpeed.
docs/adr/0006-a-supervisor-outside-the-collectives.md has the reasons.
"""
