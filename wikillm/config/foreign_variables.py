"""Environment variables with which other launchers and libraries change a run behind its configuration.

`accelerate launch` hands its settings on as ACCELERATE_*, FSDP_* and PARALLELISM_CONFIG_*, and Hugging Face's Trainer takes
them where it was told nothing else: bf16 under the label fp32. A run says in its own keys what it does. A variable that asks
for something else is refused by name; what is left of these families is removed before a library reads it, so that an
unknown one changes nothing either. torch's own variables that change numbers or switch compilation off are refused
too, and stay. Pure functions of the environment; `claim_environment` alone changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass

from wikillm.config.schema import RunConfig
from wikillm.core.errors import ConfigError, Problems

FAMILIES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "MEGATRON_LM_")
HARMLESS = frozenset(
    {
        "ACCELERATE_CPU_AFFINITY", "ACCELERATE_DEBUG_MODE", "ACCELERATE_DISABLE_RICH", "ACCELERATE_ENABLE_RICH",
        "ACCELERATE_LOG_LEVEL",
    }
)  # fmt: skip
"""What concerns messages and the placement of processes only; they stay."""
_OFF = frozenset({"", "0", "1", "no", "none", "false", "off", "auto"})


@dataclass(frozen=True, slots=True)
class Asked:
    """What decides whether a variable asks for something else than the run does. `precision` may be auto."""

    precision: str = "auto"
    compiles: bool = False
    has_gpu: bool = False

    @classmethod
    def by(cls, config: RunConfig, *, has_gpu: bool) -> Asked:
        return cls(config.train.precision, config.train.compile != "off", has_gpu)


@dataclass(frozen=True, slots=True)
class Foreign:
    """A variable that would change the run: `name`, its `value`, what it does, and the key to use instead."""

    name: str
    value: str
    does: str
    instead: str


def foreign_settings(environ: Mapping[str, str], asked: Asked) -> list[Foreign]:
    """The variables in `environ` that ask for something else than the configuration, by name."""
    found = []
    for name in sorted(environ):
        value = environ[name]
        rule = _RULES.get(name)
        if rule is not None and rule.is_active(value.strip().lower(), asked):
            found.append(Foreign(name, value, rule.does, rule.instead.format(value=value)))
    return found


def claim_environment(
    config: RunConfig, environ: MutableMapping[str, str], *, has_gpu: bool
) -> None:
    """Refuse what asks for something else, and remove the rest of the families. (all ranks, before the libraries read it)

    Raises:
        ConfigError: with every such variable and the key that says the same.
    """
    problems = Problems(ConfigError)
    for foreign in foreign_settings(environ, Asked.by(config, has_gpu=has_gpu)):
        problems.add(
            f"The environment variable {foreign.name} {foreign.does}, behind the run's configuration.",
            got=f"{foreign.name}={foreign.value}" + _origin(foreign.name),
            fix=f"unset {foreign.name}; {foreign.instead}",
        )
    problems.raise_if_any()
    for name in [name for name in environ if name.startswith(FAMILIES) and name not in HARMLESS]:
        del environ[name]


def _origin(name: str) -> str:
    return (
        "   (`accelerate launch` sets it from its flags and its config file)"
        if name.startswith(FAMILIES)
        else ""
    )


@dataclass(frozen=True, slots=True)
class _Rule:
    is_active: Callable[[str, Asked], bool]
    does: str
    instead: str


def _set(value: str, asked: Asked) -> bool:
    return value not in _OFF


def _true(value: str, asked: Asked) -> bool:
    return value in ("true", "1", "yes", "on", "y", "t")


def _precision(value: str, asked: Asked) -> bool:
    return value not in _OFF and value != asked.precision


_LAUNCH = "start with `deepspeed train.py ...` or `torchrun --nproc_per_node N train.py ...`"
_RULES: dict[str, _Rule] = {
    "ACCELERATE_MIXED_PRECISION": _Rule(
        _precision, "chooses the precision", "train.precision={value}"
    ),
    "ACCELERATE_DYNAMO_BACKEND": _Rule(_set, "compiles the model", "train.compile=layers"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": _Rule(
        _set, "changes the accumulation", "train.gradient_accumulation_steps={value}"
    ),
    "ACCELERATE_GRADIENT_CLIPPING": _Rule(
        _set, "changes the clipping", "train.max_grad_norm={value}"
    ),
    "ACCELERATE_USE_DEEPSPEED": _Rule(
        _true, "switches DeepSpeed on", f"--deepspeed zero2, and {_LAUNCH}"
    ),
    "ACCELERATE_DEEPSPEED_CONFIG_FILE": _Rule(
        lambda value, asked: value not in ("", "none"),
        "names a DeepSpeed file",
        "--deepspeed {value}",
    ),
    "ACCELERATE_USE_FSDP": _Rule(
        _true, "shards the model by FSDP", f"--deepspeed zero3, and {_LAUNCH}"
    ),
    "ACCELERATE_USE_MEGATRON_LM": _Rule(
        _true, "hands the model to Megatron-LM", f"--deepspeed zero3, and {_LAUNCH}"
    ),
    "ACCELERATE_USE_PARALLELISM_CONFIG": _Rule(
        _true, "splits the model over devices", "train.sequence_parallel_size or --deepspeed zero3"
    ),
    "ACCELERATE_USE_SAGEMAKER": _Rule(_true, "starts SageMaker's process group", _LAUNCH),
    "ACCELERATE_USE_CPU": _Rule(
        lambda value, asked: asked.has_gpu and _true(value, asked),
        "trains on the CPU although there is a GPU",
        "CUDA_VISIBLE_DEVICES= for a run on the CPU",
    ),
    "ACCELERATE_TORCH_DEVICE": _Rule(
        lambda value, asked: (
            value != "" and value.partition(":")[0] != ("cuda" if asked.has_gpu else "cpu")
        ),
        "chooses the device",
        "CUDA_VISIBLE_DEVICES chooses GPUs",
    ),
    "TORCHDYNAMO_DISABLE": _Rule(
        lambda value, asked: asked.compiles and _true(value, asked),
        "switches torch.compile off",
        "or train.compile=off",
    ),
    "TORCH_COMPILE_DISABLE": _Rule(
        lambda value, asked: asked.compiles and _true(value, asked),
        "switches torch.compile off",
        "or train.compile=off",
    ),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": _Rule(
        lambda value, asked: asked.has_gpu and _true(value, asked),
        "computes 32-bit products with 10 bits of mantissa",
        "train.precision=bf16 where speed matters",
    ),
    "NVIDIA_TF32_OVERRIDE": _Rule(
        lambda value, asked: asked.has_gpu and value == "1",
        "computes 32-bit products with 10 bits of mantissa",
        "train.precision=bf16 where speed matters",
    ),
}
NAMES = frozenset(_RULES)
"""The variables that are judged."""
