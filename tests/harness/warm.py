"""Imported once by the fork server, so that every rank starts with the heavy modules loaded."""

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import deepspeed
import torch
import transformers  # noqa: F401
from transformers import Qwen2ForCausalLM, Qwen3ForCausalLM, Trainer  # noqa: F401

import wikillm.train.trainer

# DeepSpeed imports its Muon when it starts with any optimizer, and with it torch's compiler: 2 s in every rank of every run.
import deepspeed.runtime.zero.muon.original_muon  # noqa: F401  # isort: skip
import torch.utils.cpp_extension  # noqa: F401  # isort: skip
import wikillm.train.run  # noqa: F401  # isort: skip
