"""The fork server imports this module once, so that every rank starts with the heavy modules."""

import atexit
import gc
import os

os.environ["DS_ACCELERATOR"] = "cpu"  # on a machine with a GPU too: see ranks.py
os.environ.setdefault("OMP_NUM_THREADS", "1")

import deepspeed
import torch
import transformers  # noqa: F401
from transformers import Qwen2ForCausalLM, Qwen3ForCausalLM, Trainer  # noqa: F401
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import wikillm.train.trainer

# DeepSpeed imports Muon with its first optimizer, and Muon imports torch's compiler (2 s a rank).
import deepspeed.runtime.zero.muon.original_muon  # isort: skip
import torch.utils.cpp_extension  # noqa: F401  # isort: skip
import wikillm.train.run  # noqa: F401  # isort: skip

# Tests that start DeepSpeed by hand leave its shared-memory op out too (see `train.engine`).
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
# transformers compiles several hundred regular expressions at the first save of a model.
get_checkpoint_conversion_mapping("qwen2")
# Without this, each garbage collection of a rank visits, and therefore copies, the server's pages.
gc.collect()
gc.freeze()
atexit.register(gc.unfreeze)  # otherwise triton's bindings report leaks when the server ends
