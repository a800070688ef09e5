"""Environment variables of other launchers and libraries that would change a run silently.

`accelerate launch` passes its settings as ACCELERATE_*, FSDP_* and PARALLELISM_CONFIG_*. Hugging
Face's Trainer uses them as defaults: a run could train in bf16 and report fp32. A variable with
such a prefix is refused by name if it contradicts the configuration; otherwise it is removed before
a library reads it, unless HARMLESS has it. torch's variables that change numbers or disable
compilation are refused, never removed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass

from wikillm.core.errors import ConfigError, Problems

FAMILIES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "MEGATRON_LM_")
HARMLESS = frozenset(
    f"ACCELERATE_{name}"
    for name in ("CPU_AFFINITY", "DEBUG_MODE", "DISABLE_RICH", "ENABLE_RICH", "LOG_LEVEL")
)
"""Variables that only concern messages and the placement of processes; they stay."""
# "1" is off too: one micro-step is no accumulation.
_OFF = frozenset({"", "0", "1", "no", "none", "false", "off", "auto"})
_TRUE = frozenset({"true", "1", "yes", "on", "y", "t"})


@dataclass(frozen=True, slots=True)
class RunNeeds:
    """The values of a run that a variable can contradict. `precision` may be auto."""

    precision: str = "auto"
    compiles: bool = False
    has_gpu: bool = False


@dataclass(frozen=True, slots=True)
class VariableRule:
    """When a variable would change the run, its effect, and the setting to use instead."""

    is_active: Callable[[str, RunNeeds], bool]
    does: str
    instead: str  # `{value}` stands for the variable's value


def find_conflicts(environ: Mapping[str, str], needs: RunNeeds) -> dict[str, VariableRule]:
    """The variables in `environ` that contradict the configuration, sorted by name."""
    return {
        name: _RULES[name]
        for name in sorted(environ.keys() & _RULES.keys())
        if _RULES[name].is_active(environ[name].strip().lower(), needs)
    }


def clean_environment(environ: MutableMapping[str, str], needs: RunNeeds) -> None:
    """Refuse variables that contradict the run, and remove the other variables of the families.

    All ranks call it, before the libraries read the environment.

    Raises:
        ConfigError: lists every contradicting variable and the setting to use instead.
    """
    problems = Problems(ConfigError)
    for name, rule in find_conflicts(environ, needs).items():
        value = environ[name]
        is_launchers = name.startswith(FAMILIES)
        origin = "   (`accelerate launch` sets it from its flags and its config file)"
        problems.add(
            f"The environment variable {name} {rule.does}; the configuration says otherwise.",
            got=f"{name}={value}{origin if is_launchers else ''}",
            fix=f"unset {name}; {rule.instead.format(value=value)}",
        )
    problems.raise_if_any()
    for name in [name for name in environ if name.startswith(FAMILIES) and name not in HARMLESS]:
        del environ[name]


def _is_set(value: str, needs: RunNeeds) -> bool:
    return value not in _OFF


def _is_true(value: str, needs: RunNeeds) -> bool:
    return value in _TRUE


def _is_true_on_gpu(value: str, needs: RunNeeds) -> bool:
    return needs.has_gpu and value in _TRUE


_LAUNCH = "start with `deepspeed train.py ...` or `torchrun --nproc_per_node N train.py ...`"
_ZERO3 = f"--deepspeed zero3, and {_LAUNCH}"
_SPLIT = "train.sequence_parallel_size or --deepspeed zero3"
_NO_COMPILE = VariableRule(
    lambda value, needs: needs.compiles and value in _TRUE,
    "disables torch.compile",
    "or train.compile=off",
)
_TF32 = VariableRule(
    _is_true_on_gpu,
    "computes 32-bit products with 10 bits of mantissa",
    "train.precision=bf16 where speed matters",
)
_RULES: dict[str, VariableRule] = {
    "ACCELERATE_MIXED_PRECISION": VariableRule(
        lambda value, needs: value not in _OFF and value != needs.precision,
        "sets the precision",
        "train.precision={value}",
    ),
    "ACCELERATE_DYNAMO_BACKEND": VariableRule(
        _is_set, "compiles the model", "train.compile=layers"
    ),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": VariableRule(
        _is_set, "changes the accumulation", "train.gradient_accumulation_steps={value}"
    ),
    "ACCELERATE_GRADIENT_CLIPPING": VariableRule(
        _is_set, "changes the clipping", "train.max_grad_norm={value}"
    ),
    "ACCELERATE_USE_DEEPSPEED": VariableRule(
        _is_true, "enables DeepSpeed", f"--deepspeed zero2, and {_LAUNCH}"
    ),
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": VariableRule(
        lambda value, needs: value not in ("", "none"),
        "names a DeepSpeed file",
        "--deepspeed {value}",
    ),
    "ACCELERATE_USE_FSDP": VariableRule(_is_true, "shards the model by FSDP", _ZERO3),
    "ACCELERATE_USE_MEGATRON_LM": VariableRule(_is_true, "trains with Megatron-LM", _ZERO3),
    "ACCELERATE_USE_PARALLELISM_CONFIG": VariableRule(
        _is_true, "splits the model over devices", _SPLIT
    ),
    "ACCELERATE_USE_SAGEMAKER": VariableRule(_is_true, "starts SageMaker's process group", _LAUNCH),
    "ACCELERATE_USE_CPU": VariableRule(
        _is_true_on_gpu,
        "trains on the CPU although there is a GPU",
        "CUDA_VISIBLE_DEVICES= for a run on the CPU",
    ),
    "ACCELERATE_TORCH_DEVICE": VariableRule(
        lambda value, needs: (
            value.partition(":")[0] not in ("", "cuda" if needs.has_gpu else "cpu")
        ),
        "chooses the device",
        "CUDA_VISIBLE_DEVICES chooses GPUs",
    ),
    "TORCHDYNAMO_DISABLE": _NO_COMPILE,
    "TORCH_COMPILE_DISABLE": _NO_COMPILE,
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": _TF32,
    "NVIDIA_TF32_OVERRIDE": VariableRule(
        lambda value, needs: needs.has_gpu and value == "1", _TF32.does, _TF32.instead
    ),
}
