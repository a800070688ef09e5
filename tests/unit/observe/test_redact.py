"""What is hidden before a configuration leaves the machine, and what is not."""

from __future__ import annotations

import pytest

from wikillm.config.schema import RunConfig
from wikillm.observe.names import chart
from wikillm.observe.redact import environment_secrets, names_a_secret, redact, redact_text


@pytest.mark.parametrize(
    "key",
    [
        "api_key", "apiKey", "APIKey", "SWANLAB_API_KEY", "password", "db.password", "hf_token", "token", "secret",
        "aws_secret_access_key", "key", "Authorization", "session-cookie", "auth",
        "aws_access_key_id", "ssh_keys",
    ],
)  # fmt: skip
def test_names_of_secrets(key: str) -> None:
    assert names_a_secret(key)


@pytest.mark.parametrize(
    "key",
    ["tokenizer", "data.tokenizer", "max_tokens", "global_batch_tokens", "text_key", "monkey", "keyboard", "eos_token",
     "author", "num_key_value_heads", "key_value_cache"],
)  # fmt: skip
def test_names_that_are_no_secrets(key: str) -> None:
    assert not names_a_secret(key)


def test_nothing_of_our_own_configuration_is_hidden() -> None:
    config = RunConfig().model_dump(mode="json")
    assert redact(config) == config


def test_redact() -> None:
    secret = "canary-value-123"
    config = {
        "api_key": secret,
        "hub": {"password": b"x", "url": "https://user:pw@host/x?token=abc&page=2"},
        "paths": ("git+ssh://git@host/repo.git", f"folder/{secret}/x"),
        f"name {secret}": 1,
        "key": None,
        "max_token": 7,
        "flag": True,
        "hf": "hf_abcdefghijklmnopqrstuvwxyz",
    }
    assert redact(config, [secret]) == {
        "api_key": "***",
        "hub": {"password": "***", "url": "https://***@host/x?token=***&page=2"},
        "paths": ["git+ssh://***@host/repo.git", "folder/***/x"],
        "name ***": 1,
        "key": None,
        "max_token": 7,
        "flag": True,
        "hf": "***",
    }


def test_ordinary_text_stays() -> None:
    text = "mail@example.org, see https://example.org/a@b and data/wiki.jsonl at 12:30"
    assert redact_text(text) == text


def test_secrets_of_the_environment_longest_first() -> None:
    environ = {"HF_TOKEN": "abcdef", "MY_SECRET": "abcdefghi", "HOME": "/root", "PIN_KEY": "1", "LANG": "en_US.UTF-8"}
    assert environment_secrets(environ) == ("abcdefghi", "abcdef")


def test_names_on_a_dashboard() -> None:
    assert chart("loss") == "train/loss"
    assert chart("eval_loss") == "eval/loss" and chart("bits_per_byte", "eval") == "eval/bits_per_byte"
