"""Imported once by the fork server, so that every rank starts with the heavy modules loaded."""

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import deepspeed  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401
from transformers import Qwen2ForCausalLM, Qwen3ForCausalLM, Trainer  # noqa: F401

import wikillm.train.trainer  # noqa: F401
