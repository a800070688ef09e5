"""Completions restore the model and the random state, and equal greedy decoding by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from harness.tiny_model import tiny_model, write_tokenizer
from tokenizers import Tokenizer
from transformers import AutoTokenizer, Qwen2ForCausalLM
from transformers.generation.streamers import BaseStreamer

from wikillm.generate.complete import Sampling, complete, encode

LINES = ["北京是中国的首都。", "The history of the city is long.", "水与火。"] * 20
GREEDY = Sampling(max_new_tokens=12, temperature=0)


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"), LINES)


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir: Path) -> Tokenizer:
    return Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))


@pytest.fixture
def model() -> Qwen2ForCausalLM:
    return tiny_model()


def greedy_by_hand(model: Qwen2ForCausalLM, ids: list[int], count: int, known: int) -> list[int]:
    """Argmax over the first `known` rows of a full forward pass per token, no cache."""
    ids = list(ids)
    with torch.no_grad():
        for _ in range(count):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1, :known].argmax()))
            if ids[-1] == 0:
                break
    return ids


@pytest.mark.parametrize("prompt", ["北京", "The history", ""])
def test_greedy_is_argmax(model: Qwen2ForCausalLM, tokenizer: Tokenizer, prompt: str) -> None:
    model.eval()
    ids = encode(tokenizer, prompt) or [0]
    new = greedy_by_hand(model, ids, 12, tokenizer.get_vocab_size())[len(ids) :]
    assert complete(model, tokenizer, [prompt], eos_id=0, sampling=GREEDY) == [
        tokenizer.decode(new, skip_special_tokens=True).rstrip("\ufffd")
    ]


def test_rows_that_pad_the_vocabulary_are_never_chosen(tokenizer: Tokenizer) -> None:
    known = tokenizer.get_vocab_size()
    model = tiny_model(tied=False).eval()
    assert model.config.vocab_size > known + 16
    with torch.no_grad():
        model.lm_head.weight[known:] *= (
            100  # half of them above all others, whatever the hidden state
        )
        for prompt in ("北京", "The history"):
            assert (
                int(model(torch.tensor([encode(tokenizer, prompt)])).logits[0, -1].argmax())
                >= known
            )
    steps: list[list[int]] = []

    class Streamer(BaseStreamer):
        def put(self, value: torch.Tensor) -> None:
            steps.append(value.flatten().tolist())

        def end(self) -> None: ...

    for sampling in (GREEDY, Sampling(max_new_tokens=12, temperature=1.0, top_p=1.0)):
        complete(model, tokenizer, ["北京"], eos_id=0, sampling=sampling, streamer=Streamer())
    rows = {token for step in steps for token in step}
    assert len(rows) > 4 and max(rows) < known


def test_model_and_randomness_stay_as_they_were(
    model: Qwen2ForCausalLM, tokenizer: Tokenizer
) -> None:
    model.train()
    model.model.layers[0].eval()  # a part that was frozen on purpose
    modes = [module.training for module in model.modules()]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    complete(model, tokenizer, ["北京", ""], eos_id=0, sampling=Sampling(max_new_tokens=8))
    with pytest.raises(ValueError, match="64 positions"):
        complete(model, tokenizer, ["水"], eos_id=0, sampling=Sampling(max_new_tokens=64))
    assert torch.equal(state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(weights[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_only_the_seed_decides_the_sample(model: Qwen2ForCausalLM, tokenizer: Tokenizer) -> None:
    def text(seed: int, before: int) -> str:
        torch.manual_seed(before)  # whatever ran before does not matter
        return complete(
            model,
            tokenizer,
            ["水"],
            eos_id=0,
            sampling=Sampling(20, temperature=1.0, top_p=1.0, seed=seed),
        )[0]

    assert text(1, before=1) == text(1, before=2)
    assert text(1, before=1) != text(2, before=1)


def test_tokenizers_of_both_libraries_give_equal_texts(
    model: Qwen2ForCausalLM, tokenizer: Tokenizer, tokenizer_dir: Path
) -> None:
    other = AutoTokenizer.from_pretrained(tokenizer_dir)
    prompts = ["北京是中国", "The "]
    found = complete(model, tokenizer, prompts, eos_id=0, sampling=GREEDY)
    assert found == complete(model, other, prompts, eos_id=0, sampling=GREEDY)
    alone = complete(model, tokenizer, prompts[1:], eos_id=0, sampling=GREEDY)
    assert found[1:] == alone, "a prompt does not depend on its neighbours"
    model.gradient_checkpointing_enable()
    model.train()
    assert complete(model, tokenizer, prompts, eos_id=0, sampling=GREEDY) == found


def test_generation_stops_at_eos(model: Qwen2ForCausalLM, tokenizer: Tokenizer) -> None:
    model.eval()
    ids = encode(tokenizer, "北京")
    first = int(model(torch.tensor([ids])).logits[0, -1].argmax())
    only = tokenizer.decode([first]).rstrip("\ufffd")
    assert complete(model, tokenizer, ["北京"], eos_id=first, sampling=GREEDY) == [only]


def test_a_request_to_stop_ends_a_completion_after_the_next_token(
    model: Qwen2ForCausalLM, tokenizer: Tokenizer
) -> None:
    asked: list[bool] = []

    def should_stop() -> bool:
        asked.append(len(asked) >= 14)  # in the second text of 12 tokens
        return asked[-1]

    prompts = ["北京", "水", "火"]
    whole = complete(model, tokenizer, prompts[:1], eos_id=511, sampling=GREEDY)
    texts = complete(
        model, tokenizer, prompts, eos_id=511, sampling=GREEDY, should_stop=should_stop
    )
    assert texts == whole and len(asked) == 15
