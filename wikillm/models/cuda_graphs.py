"""Decoder layers as CUDA graphs: their kernels recorded once and replayed, forward and backward: `graph_layers`.

For steps in which Python launches kernels slower than the GPU runs them: small models and small micro-batches. There is a
graph for each layer's forward and one for its backward, so gradients still come layer by layer and are exchanged
while the next are computed. A layer's input is its predecessor's output in place, and its output's gradient its
successor's input gradient: nothing is copied between layers.

A graph is blind: it reads and writes the addresses that it was recorded with. So what would make a replay wrong is an error here:

    other weights' addresses       ZeRO-3, a moved model             compared at every call
    hooks on modules               they would not be called          looked for at the recording
    a second forward before the    it overwrites what the first      counted at every call
      backward of the first          one's backward needs
    gradients that autograd takes  the next replay would write       the gradients are held by two, and then autograd
      over instead of copying        into the sum                      copies
    anything else                                                    the first batch goes through graphs and layers, and
                                                                     all gradients are compared

Evaluation, generation and batches of another shape run the layers' own code. Not run on a GPU yet: the tests replay on a CPU what was
recorded there, with a graph's semantics (`tests/harness/recorded_graph.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from transformers import PreTrainedModel

from wikillm.core.errors import WikiLLMError
from wikillm.core.log import say, warn

Shape = tuple[int, int]  # sequences, tokens
Call = Callable[..., torch.Tensor]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 3e-3}
"""Of a gradient's norm: kernels that add in another order each time (attention's backward) differ by less."""
_OFF = "train.cuda_graphs=off"


class Graph(Protocol):
    """What torch.cuda.CUDAGraph does, and the tests' recorder for a CPU."""

    def capture(self) -> AbstractContextManager[None]: ...
    def replay(self) -> None: ...


class CudaGraph:
    """A graph whose memory is shared with the others of the pool, which are replayed in the order of their recording."""

    def __init__(self, pool: Any) -> None:
        self._graph, self._pool = torch.cuda.CUDAGraph(), pool

    @contextmanager
    def capture(self) -> Iterator[None]:
        # Other threads may call CUDA meanwhile: the loader's pinned memory, NCCL's watchdog.
        with torch.cuda.graph(self._graph, pool=self._pool, capture_error_mode="thread_local"):
            yield

    def replay(self) -> None:
        self._graph.replay()


def graph_layers(model: PreTrainedModel, shape: Shape, *, new_graph: Callable[[], Graph] | None = None) -> str:
    """Let every decoder layer of `model` replay graphs in training, recorded at the first batch of `shape`.

    Compiled layers and functions are recorded as they are compiled. Returns what is said about it. Raises WikiLLMError
    for layers that draw random numbers.

    Args:
        shape: (sequences, tokens) of a training micro-batch.
        new_graph: for tests; CUDA's by default.
    """
    layers: Any = model.get_decoder().layers
    if dropout := float(getattr(model.config, "attention_dropout", 0.0) or 0.0):
        raise _blind(
            "Recorded layers cannot be compared with themselves where they draw at random.", f"dropout {dropout}"
        )
    graphs = LayerGraphs(list(layers), shape, new_graph)
    for place, layer in enumerate(layers):
        layer._compiled_call_impl = graphs.call_of(place)
    return f"{len(layers)} layers, recorded at the first step"


def ungraph_layers(model: PreTrainedModel) -> None:
    """The layers as they were before `graph_layers`."""
    layers: Any = model.get_decoder().layers
    for layer in layers:
        layer._compiled_call_impl = layer._compiled_call_impl.before  # what compile_layers left there, or None


@dataclass
class _Recorded:
    """One layer: its graphs and the memory that they read and write."""

    parameters: tuple[nn.Parameter, ...]
    input_BTH: torch.Tensor
    output_BTH: torch.Tensor
    forward: Graph
    backward: Graph
    output_gradient_BTH: torch.Tensor
    gradients: tuple[torch.Tensor, ...]
    """Of the input, then of the parameters."""
    addresses: tuple[int, ...] = ()
    turn: int = 0
    given: tuple[torch.Tensor, ...] = field(default=(), repr=False)
    """What autograd was last given: a second owner, for which it copies instead of taking the memory over."""

    def __post_init__(self) -> None:
        self.addresses = tuple(parameter.data_ptr() for parameter in self.parameters)


class LayerGraphs:
    """All layers' graphs. A layer's other arguments (masks, rotations) are the same for all, and are copied in once."""

    def __init__(self, layers: Sequence[nn.Module], shape: Shape, new_graph: Callable[[], Graph] | None) -> None:
        self.layers, self.shape, self._new_graph = layers, shape, new_graph
        self.own: list[Call] = [layer._compiled_call_impl or layer._call_impl for layer in layers]
        self.recorded: list[_Recorded] = []
        self.others: set[Shape] = set()  # training shapes that took the layers' own code, each warned about once
        self.static: list[Any] = []  # the arguments' leaves, tensors in memory of ours
        self.given: Arguments = ((), {})

    def call_of(self, place: int) -> Call:
        """What `layers[place]` runs when it is called."""
        layer, own = self.layers[place], self.own[place]

        def call(hidden_BTH: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            is_training = layer.training and torch.is_grad_enabled() and kwargs.get("past_key_values") is None
            if not is_training or (shape := (hidden_BTH.shape[0], hidden_BTH.shape[1])) != self.shape:
                if is_training and shape not in self.others:
                    self.others.add(shape)
                    warn(
                        f"a training step of {shape[0]} x {shape[1]} tokens is not replayed: recorded was {self.shape}"
                    )
                return own(hidden_BTH, *args, **kwargs)
            if place == 0:
                self._begin(hidden_BTH, (args, kwargs))
            elif not _are_the_same((args, kwargs), self.given):
                raise _blind("The layers do not all get the same mask and rotation.", f"layer {place}")
            if place == len(self.layers) - 1:
                self.given = ((), {})  # a mask may be large
            recorded = self.recorded[place]
            if tuple(parameter.data_ptr() for parameter in recorded.parameters) != recorded.addresses:
                raise _blind("The weights of a recorded layer lie elsewhere now.", f"layer {place}")
            out: torch.Tensor = _Replay.apply(recorded, hidden_BTH, *recorded.parameters)  # type: ignore[no-untyped-call]
            return out

        call.before = layer._compiled_call_impl  # type: ignore[attr-defined]
        return call

    def _begin(self, hidden_BTH: torch.Tensor, given: Arguments) -> None:
        """Record, the first time; then bring the batch's masks and rotations where the graphs read them."""
        leaves, form = tree_flatten(given)
        if not self.recorded:
            self.static = [leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
            self._record(hidden_BTH.detach(), tree_unflatten(self.static, form))
        if [_kind(leaf) for leaf in leaves] != [_kind(leaf) for leaf in self.static]:
            raise _blind("The layers are called otherwise than when they were recorded.", str([*map(_kind, leaves)]))
        for static, leaf in zip(self.static, leaves, strict=True):
            if isinstance(leaf, torch.Tensor):
                static.copy_(leaf)
        self.given = given

    def _record(self, hidden_BTH: torch.Tensor, arguments: Arguments) -> None:
        """Run each layer a few times, for what is lazy (compilers, cuBLAS); record all; compare."""
        for layer in self.layers:
            if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in layer.modules()):
                raise _blind("A replayed layer would not call its hooks, and it has some.", type(layer).__name__)
        args, kwargs = arguments
        calls: list[Call] = [lambda x, own=own: own(x, *args, **kwargs) for own in self.own]  # type: ignore[misc]
        with _without_weight_cache(hidden_BTH.device.type):
            _warm_up(calls, self.layers, hidden_BTH)
            self.recorded = _record_all(calls, self.layers, hidden_BTH, self._new_graph or _cuda_graphs())
            _compare(calls, self.recorded, hidden_BTH)
        say(f"graphs     {len(self.recorded)} layers recorded, with the gradients of the layers themselves")


class _Replay(torch.autograd.Function):
    """One layer. Its memory is written by the next replay: one forward, then its backward."""

    @staticmethod
    def forward(ctx: Any, recorded: _Recorded, hidden_BTH: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        _fill(recorded.input_BTH, hidden_BTH)
        recorded.forward.replay()
        recorded.turn += 1
        ctx.recorded, ctx.turn = recorded, recorded.turn
        return recorded.output_BTH.detach()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        recorded: _Recorded = ctx.recorded
        if ctx.turn != recorded.turn:
            raise _blind("A recorded layer ran forward again, or backward twice, before this backward pass.", "")
        _fill(recorded.output_gradient_BTH, gradients[0])
        recorded.backward.replay()
        recorded.turn += 1  # a second backward of the same forward would read freed memory
        recorded.given = tuple(gradient.detach() for gradient in recorded.gradients)
        return None, *recorded.given


def _fill(static: torch.Tensor, given: torch.Tensor) -> None:
    if static.data_ptr() != given.data_ptr() or static.stride() != given.stride():
        static.copy_(given)


def _warm_up(calls: Sequence[Call], layers: Sequence[nn.Module], hidden_BTH: torch.Tensor) -> None:
    """On a stream of its own, as CUDA wants it before a recording."""
    on_gpu = hidden_BTH.is_cuda
    stream = torch.cuda.Stream() if on_gpu else None
    if stream is not None:
        stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream) if stream is not None else nullcontext():
        for call, layer in zip(calls, layers, strict=True):
            for _ in range(3):
                x = hidden_BTH.clone().requires_grad_()
                out = call(x)
                torch.autograd.grad(out, [x, *layer.parameters()], torch.zeros_like(out))
    if stream is not None:
        torch.cuda.current_stream().wait_stream(stream)


def _record_all(
    calls: Sequence[Call], layers: Sequence[nn.Module], hidden_BTH: torch.Tensor, new_graph: Callable[[], Graph]
) -> list[_Recorded]:
    """Forwards first to last, then backwards last to first: the order of every replay, so memory can be shared."""
    inputs, outputs, forwards = [hidden_BTH.clone().requires_grad_()], [], []
    for call in calls:
        graph = new_graph()
        with graph.capture():
            out = call(inputs[-1])
        forwards.append(graph)
        outputs.append(out)
        inputs.append(out.detach().requires_grad_())
    output_gradient, recorded = torch.zeros_like(outputs[-1]), list[_Recorded]()
    for place in reversed(range(len(calls))):
        graph, parameters = new_graph(), tuple(layers[place].parameters())
        with graph.capture():
            found = torch.autograd.grad(outputs[place], [inputs[place], *parameters], output_gradient)
        x, out = inputs[place].detach(), outputs[place].detach()
        recorded.append(_Recorded(parameters, x, out, forwards[place], graph, output_gradient, found))
        output_gradient = found[0]
    return recorded[::-1]


def _compare(calls: Sequence[Call], recorded: Sequence[_Recorded], hidden_BTH: torch.Tensor) -> None:
    """Another batch through all graphs, then backwards layer by layer through graphs' results and the layers themselves.

    Raises WikiLLMError where a gradient differs. Besides the graphs' memory it takes an input per layer, and one layer's activations.
    """
    dtype = hidden_BTH.dtype
    if torch.is_autocast_enabled(hidden_BTH.device.type):
        dtype = torch.get_autocast_dtype(hidden_BTH.device.type)
    x, inputs = hidden_BTH.flip(1) * 0.5, list[torch.Tensor]()
    _fill(recorded[0].input_BTH, x)
    for call, layer in zip(calls, recorded, strict=True):
        layer.forward.replay()
        inputs.append(x.requires_grad_())
        x = call(x).detach()
    gradient = hidden_BTH.flip(0) + x
    _fill(recorded[-1].output_gradient_BTH, gradient)
    for layer in reversed(recorded):
        layer.backward.replay()
    for place in reversed(range(len(calls))):
        layer = recorded[place]
        own = torch.autograd.grad(calls[place](inputs[place]), [inputs[place], *layer.parameters], gradient)
        for mine, theirs in zip(layer.gradients, own, strict=True):
            off = float((mine.float() - theirs.float()).norm() / theirs.float().norm().clamp_min(1e-30))
            if not off <= TOLERANCE[dtype]:
                got = f"layer {place}, a gradient of shape {tuple(theirs.shape)}, {off:.1e} of its norm"
                raise _blind("Recorded layers do not give the gradients of the layers themselves.", got)
        gradient = own[0]


@contextmanager
def _without_weight_cache(device_type: str) -> Iterator[None]:
    """Autocast keeps narrow copies of weights; a recording would read one that is freed at the end of the forward."""
    if not torch.is_autocast_enabled(device_type):
        yield
        return
    dtype = torch.get_autocast_dtype(device_type)
    with torch.autocast(device_type, dtype=dtype, cache_enabled=False):
        yield


def _cuda_graphs() -> Callable[[], Graph]:
    pool = torch.cuda.graph_pool_handle()
    return lambda: CudaGraph(pool)


def _kind(leaf: Any) -> Any:
    """What may not change from one batch to the next: of a tensor all but its values, of anything else the value."""
    return (leaf.shape, leaf.dtype) if isinstance(leaf, torch.Tensor) else leaf


def _are_the_same(given: Arguments, others: Arguments) -> bool:
    """The same objects, not equal ones: a look at values would wait for the GPU."""
    (args, kwargs), (other_args, other_kwargs) = given, others
    are_args = len(args) == len(other_args) and all(a is b for a, b in zip(args, other_args, strict=True))
    return are_args and kwargs.keys() == other_kwargs.keys() and all(kwargs[k] is other_kwargs[k] for k in kwargs)


def _blind(what: str, got: str) -> WikiLLMError:
    return WikiLLMError(what, got=got or None, fix=_OFF)
