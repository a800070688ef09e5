"""The section `alerts`: which events of a run send a message, and through which channels.

Addresses of hooks and passwords are secrets. The configuration holds only the names of the
environment variables that contain them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from wikillm.config.schema_types import Section

Event = Literal["ended", "failed", "stopped", "lost", "stalled", "spike"]
EVENTS: tuple[Event, ...] = ("ended", "failed", "stopped", "lost", "stalled", "spike")
HOOKS = ("webhook", "dingtalk", "lark", "wecom", "slack", "discord")
"""Channels that need only an address; the channel `email` needs more keys."""
SECRETS = ("dingtalk_secret", "lark_secret", "email_password")


def _is_a_name(value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("takes the name of an environment variable, not the secret itself")
    return value


Variable = Annotated[str | None, AfterValidator(_is_a_name)]
"""The name of an environment variable."""


class AlertsSection(Section):
    events: tuple[Event, ...] = EVENTS
    """Events that send a message: ended, failed, stopped, lost, stalled, spike. Default: all."""
    webhook: Variable = None
    """Environment variable with a URL that gets each message as JSON."""
    dingtalk: Variable = None
    """Environment variable with the hook URL of a DingTalk robot."""
    dingtalk_secret: Variable = None
    """Environment variable with the signing secret (SEC...) of the DingTalk robot, if any."""
    lark: Variable = None
    """Environment variable with the hook URL of a Lark (Feishu) robot."""
    lark_secret: Variable = None
    """Environment variable with the signing secret of the Lark robot, if any."""
    wecom: Variable = None
    """Environment variable with the hook URL of a WeCom robot."""
    slack: Variable = None
    """Environment variable with the URL of a Slack hook."""
    discord: Variable = None
    """Environment variable with the URL of a Discord hook."""
    email_to: str | None = None
    """Recipient of e-mails; also needs email_from, email_password and smtp_server."""
    email_from: str | None = None
    """Sender of e-mails, and the user name for the server."""
    email_password: Variable = None
    """Environment variable with the sender's password for the server."""
    smtp_server: str | None = None
    """Mail server; it must offer TLS."""
    smtp_port: int = Field(default=465, ge=1, le=65535)
    """Port of the mail server: 465 uses TLS from the start, any other port STARTTLS."""

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        mail = ("email_to", "email_from", "email_password", "smtp_server")
        unset = [name for name in mail if getattr(self, name) is None]
        if 0 < len(unset) < len(mail):
            raise ValueError(f"e-mail also needs {', '.join(f'alerts.{name}' for name in unset)}")
        for hook in ("dingtalk", "lark"):
            if getattr(self, f"{hook}_secret") and not getattr(self, hook):
                raise ValueError(f"alerts.{hook}_secret has no effect without alerts.{hook}")
        return self

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels in use: keys of this section, and "email"."""
        hooks = tuple(name for name in HOOKS if getattr(self, name) is not None)
        return (*hooks, "email") if self.email_to is not None else hooks

    def missing(self, environ: Mapping[str, str]) -> dict[str, str]:
        """{key: environment variable} for each variable that a key names and that is not set."""
        named = {key: getattr(self, key) for key in (*HOOKS, *SECRETS)}
        return {key: name for key, name in named.items() if name and not environ.get(name)}
