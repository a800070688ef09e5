"""The files beside a checkpoint's weights with which transformers opens them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any


def write_model_config(model: Any, folder: Path) -> None:
    """Write config.json and generation_config.json of a transformers model, with its dtype."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
