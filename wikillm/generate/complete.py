"""Complete prompts with a model, and restore the model's modes and the random state.

`complete` is used during training (any ZeRO stage) and on exported models. It restores the training
mode of every module and torch's generators, so sampling does not change a single bit of a run.
Prompts run one at a time, so a completion does not depend on padding or on other prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria
from transformers.generation.streamers import BaseStreamer


class Tokenizer(Protocol):
    """The interface that `tokenizers.Tokenizer` and transformers' tokenizers share."""

    def encode(self, text: str, /, *, add_special_tokens: bool) -> Any: ...

    def decode(self, ids: list[int], /, *, skip_special_tokens: bool) -> Any: ...

    def get_vocab(self) -> dict[str, int]: ...


@dataclass(frozen=True, slots=True)
class Sampling:
    """Settings for choosing the next token.

    Args:
        max_new_tokens: maximum number of tokens per completion; the model may end earlier.
        temperature: divisor of the logits; 0 takes the most likely token (greedy).
        top_p: nucleus sampling: sample from the smallest set of tokens with this total probability.
        seed: seed of the random numbers; equal seed, prompt and model give equal text.
    """

    max_new_tokens: int = 64
    temperature: float = 0.8
    top_p: float = 0.95
    seed: int = 0

    def to_generation_config(self, eos_id: int, end_ids: Sequence[int] = ()) -> GenerationConfig:
        samples = self.temperature >= 1e-6  # in 32 bit, logits divided by less are infinite
        chosen: dict[str, Any] = {"do_sample": samples, "use_cache": True}
        if samples:
            chosen |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        ends = [eos_id, *end_ids]
        ids: dict[str, Any] = {"eos_token_id": ends, "pad_token_id": eos_id}
        return GenerationConfig(max_new_tokens=self.max_new_tokens, **ids, **chosen)


class _StopOnRequest(StoppingCriteria):
    """Ends a completion between two tokens once `should_stop` has returned True."""

    def __init__(self, should_stop: Callable[[], bool]) -> None:
        self._should_stop = should_stop
        self.is_stopped = False

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **_: Any) -> torch.BoolTensor:
        self.is_stopped = self.is_stopped or self._should_stop()
        size = (input_ids.shape[0],)
        return torch.full(size, self.is_stopped, device=input_ids.device)  # type: ignore[return-value]


def complete(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    eos_id: int,
    end_ids: Sequence[int] = (),
    sampling: Sampling | None = None,
    synced_gpus: bool = False,
    streamer: BaseStreamer | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> list[str]:
    """Generate a completion of each prompt; returns the new text without special tokens.

    Ids that the tokenizer does not have are never chosen.

    Args:
        model: a model in any mode; it is put into eval mode and back.
        tokenizer: the tokenizer that the model was trained with.
        prompts: texts to continue; "" starts from EOS, as every document in training does.
        eos_id: id that ends a text.
        end_ids: further ids that end a text.
        sampling: default `Sampling()`.
        synced_gpus: True under ZeRO-3 with several ranks, which must pass equal prompts.
        streamer: receives the token ids as they are generated.
        should_stop: called after every token; once True, only the finished texts are returned.
            Under ZeRO-3 it must return the same on every rank.

    Raises ValueError when prompt and new tokens need more positions than the model has.
    """
    sampling = sampling or Sampling()
    config = sampling.to_generation_config(eos_id, end_ids)
    config.suppress_tokens = padding_rows(tokenizer, model)
    texts: list[str] = []
    stop = _StopOnRequest(should_stop)
    with _in_eval_mode(model), _own_randomness(model.device, sampling.seed):
        for prompt in prompts:
            ids = encode(tokenizer, prompt) or [eos_id]
            _check_room(model, len(ids), sampling.max_new_tokens)
            input_ids_BT = torch.tensor([ids], device=model.device)
            output_BT = model.generate(  # type: ignore[operator]  # from GenerationMixin
                input_ids_BT,
                attention_mask=torch.ones_like(input_ids_BT),
                generation_config=config,
                synced_gpus=synced_gpus,
                streamer=streamer,
                stopping_criteria=[stop],
            )
            if stop.is_stopped:
                break
            new = output_BT[0, len(ids) :].tolist()
            # The last token may end within a character, whose bytes then decode to U+FFFD.
            texts.append(str(tokenizer.decode(new, skip_special_tokens=True)).rstrip("\ufffd"))
    return texts


def padding_rows(tokenizer: Tokenizer, model: PreTrainedModel) -> list[int] | None:
    """Ids of the embedding's padding rows, which training never saw; None if there are none."""
    rows = range(max(tokenizer.get_vocab().values()) + 1, int(model.config.vocab_size))
    return list(rows) or None


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Token ids of `text`, without added special tokens."""
    encoded = tokenizer.encode(text, add_special_tokens=False)
    return list(getattr(encoded, "ids", encoded))


def _check_room(model: PreTrainedModel, prompt_tokens: int, new_tokens: int) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    if limit is not None and prompt_tokens + new_tokens > limit:
        raise ValueError(
            f"the prompt has {prompt_tokens} tokens and {new_tokens} new tokens are requested, "
            f"but the model has {limit} positions"
        )


@contextmanager
def _in_eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Set eval mode; restore the mode of each module afterwards (some may be frozen in eval)."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _own_randomness(device: torch.device, seed: int) -> Iterator[None]:
    """Seed the global generators; restore their states afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
