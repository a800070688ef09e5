"""Errors of the system and of libraries get the exit code of their kind; bugs get none."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from wikillm.core.errors import CheckpointError, ConfigError, DataError, ExitCode, MachineError
from wikillm.core.faults import as_refusal, is_of_the_file
from wikillm.data.tokenizer.tokenizer import load_tokenizer


def fill_a_disk() -> None:
    with open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


def take_a_port_twice() -> None:
    from torch.distributed import TCPStore

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        TCPStore("127.0.0.1", taken.getsockname()[1], 1, is_master=True, use_libuv=True)


# what was raised -> text of the refusal
REAL: dict[str, tuple[Callable[[], object], str]] = {
    "full disk": (fill_a_disk, "No space left"),
    "missing file": (lambda: Path("/nonexistent/file").read_text(), "/nonexistent/file"),
    "file where a folder is needed": (lambda: Path("/dev/null/sub").mkdir(), "/dev/null/sub"),
    "a path too long": (lambda: Path("a" * 5000).read_text(), "too long"),
    "memory of torch": (lambda: torch.empty(10**15), "memory"),
    "memory of numpy": (lambda: np.empty(10**15), "memory"),
    "weights into a missing folder": (
        lambda: save_file({"a": torch.zeros(1)}, "/nonexistent/w"),
        "No such file",
    ),
    "a taken port": (take_a_port_twice, "master_port"),
}


@pytest.mark.parametrize("kind", REAL)
def test_errors_of_the_machine_are_machine_errors(kind: str) -> None:
    act, said = REAL[kind]
    with pytest.raises(Exception) as caught:
        act()
    refusal = as_refusal(caught.value)
    assert isinstance(refusal, MachineError), repr(caught.value)
    assert said in str(refusal) and refusal.got and refusal.fix, str(refusal)


# raised only with a full disk, a GPU or another machine
TEXTS = {
    "safetensors": "Error while serializing: I/O error: No space left on device (os error 28)",
    "torch.save": "[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534",
    "torch.save of old": "write(): fd 3 failed with No space left on device",
    "pyarrow": "[Errno 122] Error writing bytes to file. Detail: [errno 122] Disk quota exceeded",
    "CUDA": "CUDA out of memory. Tried to allocate 2.00 GiB",
    "torch's store": "The server socket has failed to listen on any local network address. "
    "port: 29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use",
    "threads": "can't start new thread",
    "the linker": "libtorch_cpu.so: failed to map segment from shared object",
}


@pytest.mark.parametrize("library", TEXTS)
def test_a_librarys_text_is_understood(library: str) -> None:
    assert isinstance(as_refusal(RuntimeError(TEXTS[library])), MachineError)


class Killed(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        os.kill(os.getpid(), signal.SIGKILL)
        return index


def test_a_killed_loader_process_is_the_machines_fault() -> None:
    loader = torch.utils.data.DataLoader(Killed(), num_workers=1)
    with pytest.raises(RuntimeError) as caught:
        next(iter(loader))
    refusal = as_refusal(caught.value)
    assert isinstance(refusal, MachineError) and "loader process" in refusal.what
    assert "killed by signal" in (refusal.got or "") or "exited" in (refusal.got or "")


DAMAGED = {
    "empty weights": ("model.safetensors", b""),
    "weights cut off": ("model.safetensors", b"\x10\0\0\0\0\0\0\0{"),
    "pickle cut off": ("optimizer.pt", b"PK\x03\x04" + b"x" * 100),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_a_checkpoint_error(kind: str, tmp_path: Path) -> None:
    name, content = DAMAGED[kind]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(Exception) as caught:
        load_file(path) if path.suffix == ".safetensors" else torch.load(path, weights_only=True)
    assert isinstance(as_refusal(caught.value), CheckpointError)


@pytest.mark.parametrize(
    "mistake",
    [
        KeyError("step"),
        ValueError("shapes differ"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RecursionError(),
        AssertionError("never"),
        OSError("no number"),
        OSError(errno.EBADF, os.strerror(errno.EBADF)),
        OSError(errno.EINVAL, os.strerror(errno.EINVAL)),  # a seek before the beginning
    ],
    ids=repr,
)
def test_a_bug_is_no_refusal(mistake: Exception) -> None:
    assert as_refusal(mistake) is None


def test_only_an_explicit_cause_explains_an_error() -> None:
    try:
        try:
            fill_a_disk()
        except OSError as error:
            raise RuntimeError("a library gave up") from error
    except RuntimeError as wrapped:
        assert isinstance(as_refusal(wrapped), MachineError)
    try:
        try:
            fill_a_disk()
        except OSError:
            raise KeyError("a mistake in the handler")  # noqa: B904
    except KeyError as mistake:
        assert as_refusal(mistake) is None


def test_a_refusal_is_returned_as_it_is() -> None:
    for error in (ConfigError("a"), DataError("b"), CheckpointError("c")):
        assert as_refusal(error) is error


def test_every_error_number_of_this_system_has_an_answer() -> None:
    for number in errno.errorcode:
        refusal = as_refusal(OSError(number, os.strerror(number), "some/file"))
        assert refusal is None or (refusal.exit_code == ExitCode.MACHINE and refusal.fix), (
            errno.errorcode[number]
        )


def test_a_value_that_only_deepspeed_refuses_is_a_mistake_in_its_json() -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    for values, named in (
        ({"gradient_allreduce_op": "max"}, "gradient_allreduce_op"),
        ({"zero_optimization": {"stage": 2, "reduce_bucket_size": -1}}, "reduce_bucket_size"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "bf"),
        ({"data_types": {"keep_in_fp32_modules": "x"}}, "keep_in_fp32_modules"),
    ):
        with pytest.raises(Exception) as refused:
            DeepSpeedConfig({"train_batch_size": 1, **values})
        refusal = as_refusal(refused.value)
        assert isinstance(refusal, ConfigError) and named in str(refusal.got), values
    assert as_refusal(ValueError("of our own")) is None


def error_of(read: Callable[[Path], object], path: Path) -> BaseException:
    with pytest.raises(Exception) as caught:
        read(path)
    return caught.value


@pytest.mark.parametrize("read", [Path.read_bytes, load_tokenizer])
def test_without_a_free_descriptor_no_file_is_damaged(
    read: Callable[[Path], object], tmp_path: Path
) -> None:
    assert is_of_the_file(error_of(read, tmp_path / "none"))
    (tmp_path / "tokenizer.json").write_text("{}")
    path = tmp_path if read is load_tokenizer else tmp_path / "tokenizer.json"
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open(tmp_path, os.O_RDONLY)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, before[1]))
    try:
        error = error_of(read, path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert not is_of_the_file(error) and isinstance(as_refusal(error), MachineError)
