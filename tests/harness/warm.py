"""Imported once by the fork server, so that every rank starts with the heavy modules loaded."""

import os

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import deepspeed  # noqa: E402, F401
import torch  # noqa: E402, F401
import transformers  # noqa: E402, F401
from transformers import Qwen2ForCausalLM, Qwen3ForCausalLM, Trainer  # noqa: E402, F401

import wikillm.train.trainer  # noqa: E402, F401
