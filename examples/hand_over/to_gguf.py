"""Convert an export whose tokenizer was trained with it (data.tokenizer=train:N) to GGUF.

    python examples/hand_over/to_gguf.py LLAMA_CPP EXPORT --outfile model.gguf --outtype f16

LLAMA_CPP is a checkout of llama.cpp; further options are those of its convert_hf_to_gguf.py. That
converter knows a tokenizer by a hash of the ids that it gives to a test text, which no new
vocabulary can have. WikiLLM's own tokenizers cut text as Qwen2's does, so this says `qwen2` in the
converter's place, after it has read in tokenizer.json that this is so.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

QWEN2_SPLITS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def main() -> None:
    llama_cpp, export = map(Path, sys.argv[1:3])
    tokenizer = json.loads((export / "tokenizer.json").read_text(encoding="utf-8"))
    parts = (tokenizer.get("pre_tokenizer") or {}).get("pretokenizers") or [{}]
    if parts[0].get("pattern") != {"Regex": QWEN2_SPLITS}:
        sys.exit(f"{export}: the tokenizer does not cut text as Qwen2's does")
    sys.path[:0] = [str(llama_cpp), str(llama_cpp / "gguf-py")]
    from conversion.base import TextModel  # of llama.cpp

    TextModel.get_vocab_base_pre = lambda self, tokenizer: "qwen2"
    sys.argv = ["convert_hf_to_gguf.py", str(export), *sys.argv[3:]]
    runpy.run_path(str(llama_cpp / "convert_hf_to_gguf.py"), run_name="__main__")


if __name__ == "__main__":
    main()
