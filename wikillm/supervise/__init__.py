"""What watches a run from outside its collectives: who is there, who is lost, who stands still. No torch, no DeepSpeed.

Every rank of a run on several nodes has an agent, a small process that no interpreter lock of the training can hold up.
Agents talk TCP to the hub in rank 0's agent. Why so: docs/adr/0006-a-supervisor-outside-the-collectives.md.
"""
