"""Open a model folder with plain transformers. Imports nothing from WikiLLM. Also a program:

    python -P plain_transformers.py REQUEST ANSWER   two JSON files; logits go to ANSWER.safetensors

REQUEST has the keys folder and texts, and for the model ids (one row) and prompt. The model runs on
the CPU, in its stored type.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def tokenize(folder: str, texts: list[str]) -> dict[str, Any]:
    """Ids of each text from AutoTokenizer, in a plain call ("plain") and with special tokens read
    as ordinary text ("ordinary")."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ordinary = [tokenizer(text, split_special_tokens=True)["input_ids"] for text in texts]
    return {
        "transformers": transformers.__version__,
        "class": type(tokenizer).__name__,
        "plain": [tokenizer(text, split_special_tokens=False)["input_ids"] for text in texts],
        "ordinary": ordinary,
        "decoded": [tokenizer.decode(ids) for ids in ordinary],
        "eos_id": tokenizer.eos_token_id,
        "length": len(tokenizer),
    }


def compute(folder: str, ids: list[int], prompt: str, file: str) -> dict[str, Any]:
    """Write the logits of one row of ids to `file`, and generate one token after `prompt`."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, torch_dtype="auto").eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits
        save_file({"logits": logits.float().contiguous()}, file)
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=1, do_sample=False)
    return {
        "architecture": type(model).__name__,
        "dtype": str(next(model.parameters()).dtype),
        "generated": output[0].tolist(),
    }


def main() -> None:
    sys.modules["wikillm"] = None  # type: ignore[assignment]  # importing wikillm is now an error
    with open(sys.argv[1], encoding="utf-8") as file:
        request = json.load(file)
    answer = tokenize(request["folder"], request["texts"])
    logits = sys.argv[2] + ".safetensors"
    answer |= compute(request["folder"], request["ids"], request["prompt"], logits)
    with open(sys.argv[2], "w", encoding="utf-8") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main()
