"""Hosts and hostfiles: names that ssh or a shell could misread are refused with file and line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wikillm.core.errors import ConfigError
from wikillm.remote.hosts import Host, check_destination, is_host, read_hostfile
from wikillm.remote.ssh import rsync_argv, ssh_argv


def written(folder: Path, text: str) -> Path:
    path = folder / "hostfile"
    path.write_text(text, encoding="utf-8")
    return path


def test_comments_blank_lines_and_addresses_are_read(tmp_path: Path) -> None:
    text = "# nodes\n\nnode1 slots=8   # the first\n  10.0.0.2\tslots=4\nfe80::1 slots=1\n"
    assert read_hostfile(written(tmp_path, text)) == (
        Host("node1", 8),
        Host("10.0.0.2", 4),
        Host("fe80::1", 1),
    )


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("", "names no host", "hostfile"),
        ("# only words\n", "names no host", "hostfile"),
        ("node1 slots=8\nnode1 slots=8\n", "node1 appears twice", "hostfile:2 and "),
        *(
            (f"\n{line} slots=8\n", "a host and its slots", "hostfile:2")
            for line in ("-oProxyCommand=x${IFS}", "node1;reboot", "$(reboot)", "me@node1", "节点")
        ),
        *(
            (f"node1 {slots}\n", "a host and its slots", "hostfile:1")
            for slots in ("", "slots=0", "slots=65", "slots=-1", "slots=8 extra")
        ),
    ],
)
def test_each_mistake_has_its_line(text: str, what: str, where: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        read_hostfile(written(tmp_path, text))
    assert what in refused.value.what and where in (refused.value.got or "")
    assert refused.value.fix


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="3 problems") as refused:
        read_hostfile(written(tmp_path, "a slots=0\n-x slots=1\nb slots=2\nb slots=2\n"))
    assert all(f"hostfile:{line}" in (refused.value.got or "") for line in (1, 2, 4))


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_hostfile(tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe slots=1")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_hostfile(tmp_path / "binary")


@given(st.text(max_size=40))
def test_shell_syntax_is_not_a_host(text: str) -> None:
    if is_host(text):
        assert not set(text) & set(" \t\n\r;|&$`\"'\\<>(){}[]*?!#~%@/=")
        assert not text.startswith("-") and text.isascii()


@pytest.mark.parametrize("zero", ["", "me@"])
def test_an_ipv6_address_in_brackets_is_that_address(zero: str, tmp_path: Path) -> None:
    there = check_destination(f"{zero}[2001:db8::1]")
    assert there == f"{zero}2001:db8::1" == check_destination(f"{zero}2001:db8::1")
    assert ssh_argv(there, "true")[-2:] == (there, "true")
    assert rsync_argv(".", there, "/a b", ())[-1] == f"{zero}[2001:db8::1]:/a b/"
    assert rsync_argv(".", f"{zero}gpu1", "f", ())[-1] == f"{zero}gpu1:f/"
    assert read_hostfile(written(tmp_path, "[2001:db8::1] slots=2\n")) == (Host("2001:db8::1", 2),)


@pytest.mark.parametrize("good", ["gpu1", "gpu_1", "me@gpu1", "a.b@10.0.0.1", "me@fe80::1"])
def test_valid_destinations_are_accepted(good: str) -> None:
    assert check_destination(good) == good


NO_HOSTS = """
    @gpu1 me@ -l@gpu1 me@-oX me@gpu1;ls fe80::1%eth0 me@[fe80::1%eth0] me@gpu1:2222 [::1]:22
    [gpu1] [10.0.0.1] [::1 [] [::1]] me@[-oX]
"""


@pytest.mark.parametrize("bad", ["", "a b@c", "me@gpu1\n", *NO_HOSTS.split()])
def test_invalid_destinations_are_refused(bad: str) -> None:
    with pytest.raises(ConfigError, match="not a host") as refused:
        check_destination(bad)
    assert "a port or a zone" in (refused.value.fix or "")
