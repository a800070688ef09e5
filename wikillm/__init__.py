"""WikiLLM: pretraining runs you can trust, from one CPU to a cluster.

Importing the package costs nothing: no torch, no transformers, no side effects.
"""

__version__ = "0.3.0"
