"""A conversation with a model: by its chat template, or as a base model that continues text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from wikillm.core.errors import ConfigError
from wikillm.data.tokenizer.chat_template import render_chat
from wikillm.generate.complete import Sampling, complete, encode
from wikillm.generate.load import LoadedModel
from wikillm.generate.stream import TextPieces


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the model. `left_out` is the number of old messages that were dropped so that
    the prompt fits the model's positions."""

    text: str
    tokens: int
    left_out: int


@dataclass(slots=True)
class Conversation:
    """Keeps the messages of a conversation, and generates answers.

    Args:
        template: Jinja text of the chat template; None for a base model, which continues text.
        sampling: settings of the first answer; each further answer adds 1 to the seed.
    """

    loaded: LoadedModel
    sampling: Sampling
    template: str | None
    messages: list[dict[str, str]] = field(default_factory=list)
    text: str = ""  # without a template: the last text, continuation included
    _answers: int = 0

    def reset(self) -> None:
        self.messages.clear()
        self.text = ""

    def answer(
        self, entered: str, write: Callable[[str], object], should_stop: Callable[[], bool]
    ) -> Answer:
        """Generate the answer to `entered`, and add both to the conversation.

        Args:
            entered: a message; for a base model, a text to continue ("" continues the last text).
            write: called with each piece of text; a piece has only whole characters.
            should_stop: called after every token; True ends the answer, whose text is kept.

        Raises ConfigError when the text does not fit the model's positions.
        """
        left_out = 0
        prompt = entered or self.text
        kept = list(self.messages)
        try:
            if self.template is not None:
                self.messages.append({"role": "user", "content": entered})
                left_out = self._leave_out(self.template)
                prompt = self._render(self.template)
            pieces = self._generate(prompt, write, should_stop)
        except BaseException:
            self.messages[:] = kept  # remove the message that got no answer
            raise
        self._answers += 1
        self.text = prompt + pieces.text
        if self.template is not None:
            self.messages.append({"role": "assistant", "content": pieces.text})
        return Answer(pieces.text, pieces.tokens, left_out)

    def _generate(
        self, prompt: str, write: Callable[[str], object], should_stop: Callable[[], bool]
    ) -> TextPieces:
        loaded = self.loaded
        room = self._room(prompt)
        if room < 1:
            raise ConfigError(
                "The text is too long for the positions of the model.",
                got=f"{self._positions() - room:,} tokens, {self._positions():,} positions",
                fix="type /reset, or enter a shorter text",
            )
        pieces = TextPieces(loaded.tokenizer, write)
        seed = self.sampling.seed + self._answers
        max_new_tokens = min(self.sampling.max_new_tokens, room)
        complete(
            loaded.model,
            loaded.tokenizer,
            [prompt],
            eos_id=loaded.eos_id,
            end_ids=loaded.end_ids,
            sampling=replace(self.sampling, max_new_tokens=max_new_tokens, seed=seed),
            streamer=pieces,
            should_stop=should_stop,
        )
        return pieces

    def _leave_out(self, template: str) -> int:
        """Drop the oldest question and answer until the prompt leaves room for an answer."""
        wanted = min(self.sampling.max_new_tokens, self._positions() // 2)
        before = len(self.messages)
        while len(self.messages) > 2 and self._room(self._render(template)) < wanted:
            del self.messages[:2]
        return before - len(self.messages)

    def _render(self, template: str) -> str:
        eos_token = self.loaded.text_tokenizer.eos_token
        return render_chat(template, self.messages, eos_token=eos_token)

    def _room(self, prompt: str) -> int:
        return self._positions() - max(1, len(encode(self.loaded.tokenizer, prompt)))

    def _positions(self) -> int:
        return int(getattr(self.loaded.model.config, "max_position_embeddings", 1 << 20))
