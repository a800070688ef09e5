"""Recorded layers: the layers' own numbers over several micro-batches, and an error wherever a replay would be wrong.

Graphs are those of `harness.recorded_graph`; what CUDA does with them is in tests/gpu.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from harness.recorded_graph import RecordedGraph
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from wikillm.core.errors import WikiLLMError
from wikillm.models.attention_mask import prepare_masks
from wikillm.models.compile import compile_layers
from wikillm.models.cuda_graphs import LayerGraphs, graph_layers, ungraph_layers
from wikillm.models.merged_projections import merge_projections
from wikillm.models.patch import patch_loss
from wikillm.models.tiled_mlp import tile_mlp

SHAPE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 8, "intermediate_size": 32, "max_position_embeddings": 64, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": 0, "tie_word_embeddings": True,
}  # fmt: skip
BATCH, LENGTH = 2, 8


def build(architecture: str = "qwen2") -> Any:
    torch.manual_seed(5)
    if architecture == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**SHAPE))
    return Qwen3ForCausalLM(Qwen3Config(**SHAPE))


def batch(seed: int, *, documents: bool = False) -> dict[str, torch.Tensor]:
    tokens = torch.randint(0, 97, (BATCH, LENGTH), generator=torch.Generator().manual_seed(seed))
    found = {"input_ids": tokens, "labels": tokens}
    if documents:
        found["position_ids"] = torch.arange(LENGTH).remainder(2 + seed).expand(BATCH, -1).contiguous()
    return found


def steps(model: Any, *, autocast: bool = False, documents: bool = False) -> list[torch.Tensor]:
    """Three optimizer steps of two micro-batches with an evaluation between: losses and gradients, in order."""
    optimizer, found = torch.optim.SGD(model.parameters(), lr=0.5), []
    model.train()
    for step in range(3):
        optimizer.zero_grad()
        for micro in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = model(**batch(2 * step + micro, documents=documents), use_cache=False).loss
            loss.backward()
            found.append(loss.detach())
        found += [parameter.grad.clone() for parameter in model.parameters()]
        optimizer.step()
        model.eval()
        with torch.no_grad():
            found.append(model(**batch(99), use_cache=False).loss)
        model.train()
    return found


def patched(kernels: tuple[str, ...], architecture: str = "qwen2") -> Any:
    model = build(architecture)
    patch_loss(model, rows=16, device_type="cpu")
    if "mask" in kernels:
        prepare_masks(model)
    if "eager" in kernels:
        model.set_attn_implementation("eager")
    if "merged" in kernels:
        merge_projections(model)
    if "tiled" in kernels:
        tile_mlp(model, rows=16, device_type="cpu")
    if "compiled" in kernels:
        torch._dynamo.reset()
        compile_layers(model, {(BATCH, LENGTH)}, backend="aot_eager")
    return model


def graphed(model: Any, new_graph: Any = RecordedGraph) -> Any:
    graph_layers(model, (BATCH, LENGTH), new_graph=new_graph)
    return model


def backward(model: Any, seed: int = 0) -> None:
    model(**batch(seed), use_cache=False).loss.backward()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    ("architecture", "kernels"),
    [
        ("qwen2", ()),
        ("qwen3", ("merged",)),
        ("qwen2", ("tiled",)),
        ("qwen2", ("mask",)),
        ("qwen2", ("eager",)),
        ("qwen2", ("compiled",)),
    ],
)
def test_steps_are_those_of_the_layers_themselves(architecture: str, kernels: tuple[str, ...], autocast: bool) -> None:
    """Bit for bit: micro-batches that add up, weights that change, an evaluation between, masks of other documents."""
    documents = bool({"mask", "eager"} & set(kernels))
    expected = steps(patched(kernels, architecture), autocast=autocast, documents=documents)
    RecordedGraph.replays = 0
    found = steps(graphed(patched(kernels, architecture)), autocast=autocast, documents=documents)
    layers, micro_steps = 3, 6
    assert RecordedGraph.replays == 2 * layers * (micro_steps + 1)  # once more for the comparison at the start
    for mine, theirs in zip(found, expected, strict=True):
        assert torch.equal(mine, theirs)


def test_nothing_is_copied_between_layers() -> None:
    model = graphed(build())
    backward(model)
    layers = recorded_layers(model)
    for before, after in pairwise(layers):
        assert after.input_BTH.data_ptr() == before.output_BTH.data_ptr()
        assert before.output_gradient_BTH.data_ptr() == after.gradients[0].data_ptr()


def recorded_layers(model: Any) -> list[Any]:
    call = model.model.layers[0]._compiled_call_impl
    return next(cell.cell_contents for cell in call.__closure__ if isinstance(cell.cell_contents, LayerGraphs)).recorded


def test_other_shapes_and_restored_layers_run_their_own_code(capsys: pytest.CaptureFixture[str]) -> None:
    model = graphed(build())
    backward(model)
    RecordedGraph.replays = 0
    tokens = batch(0)["input_ids"]
    for _ in range(2):
        model(input_ids=tokens[:1], labels=tokens[:1], use_cache=False).loss.backward()
    assert capsys.readouterr().err == "warning: a training step of 1 x 8 tokens is not replayed: recorded was (2, 8)\n"
    model.generate(tokens, max_new_tokens=2, do_sample=False)
    assert RecordedGraph.replays == 0
    ungraph_layers(model)
    backward(model)
    assert RecordedGraph.replays == 0 and model.model.layers[0]._compiled_call_impl is None


def test_a_second_forward_before_the_backward_is_an_error() -> None:
    """Without the last norm, which on a CPU finds by itself that its input has changed."""
    decoder = graphed(build()).model
    decoder.norm = torch.nn.Identity()
    first, second = (decoder(batch(seed)["input_ids"], use_cache=False).last_hidden_state.sum() for seed in (0, 1))
    with pytest.raises(WikiLLMError, match="ran forward again"):
        first.backward()
    second.backward(retain_graph=True)
    with pytest.raises(WikiLLMError, match="ran forward again"):
        second.backward()


def test_weights_that_moved_are_an_error() -> None:
    model = graphed(build())
    backward(model)
    weight = model.model.layers[1].mlp.up_proj.weight
    weight.data = weight.data.clone()
    with pytest.raises(WikiLLMError, match="lie elsewhere") as caught:
        backward(model)
    assert caught.value.got == "layer 1" and caught.value.fix == "train.cuda_graphs=off"


def test_dropout_is_an_error() -> None:
    model = build()
    model.config.attention_dropout = 0.1
    with pytest.raises(WikiLLMError, match="draw at random"):
        graphed(model)


def test_hooks_are_an_error() -> None:
    model = graphed(build())
    model.model.layers[2].self_attn.register_forward_hook(lambda *_: None)
    with pytest.raises(WikiLLMError, match="hooks"):
        backward(model)


def test_other_arguments_are_an_error() -> None:
    model = graphed(build())
    prepare_masks(model)
    backward(model)
    with pytest.raises(WikiLLMError, match="called otherwise"):
        model(**batch(0, documents=True), use_cache=False)


def test_a_mask_of_one_layer_alone_is_an_error() -> None:
    model = graphed(build())
    backward(model)
    own = model.model.layers[1]._compiled_call_impl
    model.model.layers[1]._compiled_call_impl = lambda x, **kw: own(x, **kw | {"attention_mask": torch.zeros(1)})
    with pytest.raises(WikiLLMError, match="same mask"):
        backward(model)


class Forgetful(RecordedGraph):
    """Leaves out its last product, as a graph would that was recorded beside the stream of its work."""

    def replay(self) -> None:
        products = [place for place, call in enumerate(self.calls) if call[0] is torch.ops.aten.mm.default]
        if products:
            del self.calls[products[-1]]
        super().replay()


def test_graphs_that_give_other_gradients_are_an_error() -> None:
    with pytest.raises(WikiLLMError, match="do not give the gradients"):
        backward(graphed(build(), Forgetful))
