"""What is hidden before a configuration leaves the machine, and what is not."""

from __future__ import annotations

import pytest

from wikillm.config.schema import RunConfig
from wikillm.observe.names import chart
from wikillm.observe.redact import (
    HIDDEN,
    environment_secrets,
    holds_token,
    names_a_secret,
    redact,
    redact_text,
    without_queries,
)

SECRETS = """
    api_key apiKey APIKey SWANLAB_API_KEY password db.password hf_token token secret key auth
    aws_secret_access_key Authorization session-cookie aws_access_key_id ssh_keys
    PGPASSWORD SMTP_PASS MYSQL_PWD GITLAB_PAT SENTRY_DSN authtoken SLACK_WEBHOOK
"""
NO_SECRETS = """
    tokenizer data.tokenizer max_tokens global_batch_tokens text_key monkey keyboard eos_token
    author num_key_value_heads key_value_cache PWD OLDPWD bypass max_train_tokens
"""


def test_names_of_secrets() -> None:
    assert [key for key in SECRETS.split() if not names_a_secret(key)] == []
    assert [key for key in NO_SECRETS.split() if names_a_secret(key)] == []


def test_nothing_of_our_own_configuration_is_hidden() -> None:
    config = RunConfig().model_dump(mode="json")
    assert redact(config) == config


def test_secrets_in_a_configuration_are_hidden() -> None:
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


# Put together here, so that no scanner takes this file for a leak.
TOKENS = [
    "LTAI" + "5tAbCdEfGhIjKlMnOpQr",
    "ms-" + "12345678-90ab-cdef-1234-567890abcdef",
    "AIza" + "SyA-1234567890abcdefghijklmnopqrstu",
    "npm_" + "A1b2C3d4" * 4 + "Zz12",
    "glpat-" + "AbCdEf1234_-567890xy",
    "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFU",
    "hf_" + "abcdefghijklmnopqrstuvwxyz",
    "sk-" + "proj-abcdefghijklmnopqrstuvwx",
    "ghp_" + "abcdefghijklmnopqrstuvwxyz0123456789",
    "github_pat_" + "11ABCDEFG0abcdefghijkl_mnopqrstuvwxyz",
    "AKIA" + "IOSFODNN7EXAMPLE",
    "ASIA" + "IOSFODNN7EXAMPLE",
    "AKID" + "z8krbsJ5yKBZQpn74WFkmLPx3gnPhESA",
    "xoxb-" + "123456789012-abcdefGHIJKL",
    "pypi-" + "AgEIcHlwaS5vcmcCJDEyMzQ1Njc4LTEyMzQ",
    "glpat-" + "AbCdEfGhIjKlMnOpQrStUv.01.0w1a2b3c4",
    "glrt-" + "AbCdEfGhIjKlMnOpQrSt",
    "hf_oauth_" + "AbCdEfGhIj1234.KlMnOp-QrSt",
    "gsk_" + "AbCdEfGhIjKlMnOpQrStUvWxYz012345",
    "xai-" + "AbCdEfGhIjKlMnOpQrStUvWxYz012345",
    "nvapi-" + "AbCdEfGhIjKlMnOp-QrStUvWxYz012345",
    "r8_" + "AbCdEfGhIjKlMnOpQrStUvWxYz0123456789A",
    "wandb_v1_" + "AbCdEfGhIjKlMnOp_QrStUvWxYz0123",
    "0123456789abcdef" * 2 + ".AbCdEfGhIjKlMnOp",
    "AKLT" + "AbCdEfGhIjKlMnOpQrStUvWxYz012345",
    "bce-v3/ALTAK-" + "AbCdEfGhIjKlMnOp/0123456789abcdef0123",
    "ABIA" + "IOSFODNN7EXAMPLE",
    "GOCSPX-" + "AbCdEfGhIjKlMnOp-QrStUvWxYz01",
    "ya29." + "a0AfB_byAbCdEfGhIjKlMnOpQrStUvWxYz",
    "dop_v1_" + "0123456789abcdef" * 4,
    "dapi" + "0123456789abcdef" * 2,
    "dckr_pat_" + "AbCdEfGhIjKlMnOpQrStUvWx-01",
    "hvs." + "CAESIJAbCdEfGhIjKlMnOpQrStUvWxYz01",
    "SG." + "AbCdEfGhIjKlMnOpQrStUv.AbCdEfGhIjKlMnOpQrStUvWxYz0123456789-_abcde",
    "110201543:" + "AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw0",
    "xapp-" + "1-A012345678-1234567890123-abcdef0123456789",
]


@pytest.mark.parametrize("token", TOKENS, ids=[token[:5] for token in TOKENS])
def test_tokens_of_known_shape(token: str) -> None:
    for around in ("{}", "key={} ok", "a_{}", '"{}",', "Bearer {}\n", "钥匙{}。", "{}."):
        shown = redact_text(around.format(token))
        assert token not in shown and token[6:] not in shown and HIDDEN in shown, around
        assert holds_token(around.format(token)), around


SIGNED = [
    "https://b.s3.amazonaws.com/k.jsonl?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=canary"
    "&X-Amz-Expires=9&X-Amz-Signature=canary",
    "https://b.s3.amazonaws.com/k.jsonl?AWSAccessKeyId=canary&Expires=1700000000&Signature=canary",
    "https://b.oss-cn.aliyuncs.com/k.jsonl?OSSAccessKeyId=canary&Expires=1&Signature=canary",
    "https://b.oss-cn-hangzhou.aliyuncs.com/k.jsonl?x-oss-credential=canary&x-oss-signature=canary",
    "https://storage.googleapis.com/b/k.jsonl?X-Goog-Credential=canary&X-Goog-Signature=canary",
    "https://a.blob.core.windows.net/c/k.jsonl?sv=2022-11-02&se=2024&sr=b&sp=r&sig=canary",
    "https://b.cos.myqcloud.com/k.jsonl?q-sign-algorithm=sha1&q-ak=canary&q-signature=canary",
    "https://d111.cloudfront.net/k.jsonl?Policy=canary&Signature=canary&Key-Pair-Id=canary",
    "https://cdn.example.org/k.jsonl?auth_key=1-0-0-canary",
    "https://cdn.example.org/k.jsonl?e=1&v=canary" + "0123456789abcdef" * 2,
    "https://host/k.jsonl?page=2&st=canary&token=canary",
]


@pytest.mark.parametrize("url", SIGNED)
def test_signed_addresses_lose_their_query(url: str) -> None:
    for text in (url, f"reading {url} failed", f'["{url}", "x"]', f"path: {url}\nnext: 1"):
        assert "canary" not in without_queries(text)
        assert text.replace(url, url.split("?")[0] + "?***") == without_queries(text)
        if "page=" not in url:
            assert "canary" not in redact_text(text) and url.split("?")[0] in redact_text(text)


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer canary0123456789.abc",
        "{'Authorization': 'Basic Y2FuYXJ5OmNhbmFyeQ==canary'}",
        "SWANLAB_API_KEY=canary-value srun",
        "--api-key canary-value --x",
        "--hub.password='canary value'",
        '{"client_secret": "canary-value", "a": 1}',
        "http://user:can@ary@proxy:3128/x",
        "http://user:can/ary@proxy:3128/x",
        "https://hooks.slack.com/services/T00/B00/canary",
        "https://open.feishu.cn/open-apis/bot/v2/hook/canary-89ab",
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3canary\n-----END OPENSSH PRIVATE KEY-----",
    ],
)
def test_secrets_in_the_text_of_requests_commands_and_files(text: str) -> None:
    shown = redact_text(text)
    assert "canary" not in shown and "ary" not in shown and HIDDEN in shown


@pytest.mark.parametrize(
    "part", ["a", "-a", "a://", "https://a:", "a://a:b/", "a=", "eyJaaaaaaaa."]
)
def test_a_long_text_of_partial_matches_takes_linear_time(part: str) -> None:
    """A text of others cannot stall a run: twenty seconds before names and users were bounded."""
    redact_text(part * (20_000 // len(part)))


def test_records_of_a_run_hold_no_query_at_all() -> None:
    text = 'path: ["https://host/a.jsonl?page=2", "s3://b/k?versionId=1", "why? so"]  # x.yaml:3?'
    shown = 'path: ["https://host/a.jsonl?***", "s3://b/k?***", "why? so"]  # x.yaml:3?'
    assert without_queries(text) == shown
    assert redact_text(text) == text


def test_ordinary_text_stays() -> None:
    text = "mail@example.org, see https://example.org/a@b and data/wiki.jsonl at 12:30"
    assert redact_text(text) == text
    text = (
        "https://example.org:8080/a@b/services/x key=5 token: fine basic configuration-of-2-nodes"
    )
    assert redact_text(text) == text and without_queries(text) == text
    text = "ms-marco, ms-12, task-force, eyJ, npm_config_cache, LTAI, AIzawl, https://a.org/?q=what"
    assert redact_text(text) == text and not holds_token(text)


def test_secrets_of_the_environment_longest_first() -> None:
    environ = {"HF_TOKEN": "abcdef", "MY_SECRET": "abcdefghi", "PIN_KEY": "1", "LANG": "en_US"}
    assert environment_secrets(environ) == ("abcdefghi", "abcdef")


def test_names_on_a_dashboard() -> None:
    assert chart("loss") == "train/loss"
    assert chart("eval_loss") == "eval/loss"
    assert chart("bits_per_byte", "eval") == "eval/bits_per_byte"
