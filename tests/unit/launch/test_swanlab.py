"""SwanLab Launch, offline: which manifests are valid, what is packed, which warnings there are."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from wikillm.cli.main import main
from wikillm.core.errors import ConfigError
from wikillm.launch.swanlab_manifest import PYTHONS, TEMPLATE, SwanLabManifest, read_manifest
from wikillm.launch.swanlab_pack import plan_packing, write_zip

GOOD = 'apiVersion: swanlab/v1\nkind: Folder\nmetadata:\n  name: demo\nspec:\n  python: "3.11"\n'


def manifest(folder: Path, text: str = GOOD, files: tuple[str, ...] = ()) -> SwanLabManifest:
    for name in ("train.py", "requirements.txt", *files):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"# {name}\n")
    (folder / "swanlab.yaml").write_text(text, encoding="utf-8")
    return read_manifest(folder / "swanlab.yaml")


def names(folder: Path, exclude: str, *files: str) -> set[str]:
    made = manifest(folder, f"{GOOD}  exclude: {exclude}\n", files)
    always = {"train.py", "requirements.txt", "swanlab.yaml"}
    return {file.name for file in plan_packing(made).files} - always


def test_a_manifest_with_all_keys_is_read(tmp_path):
    text = GOOD.replace("name: demo", "name: demo\n  desc: d\n  combo: H800-1")
    text += "  entry: train.py\n  volumes:\n    - name: wiki\n      id: abc\n  exclude: [tests]\n"
    made = manifest(tmp_path, text)
    assert (made.name, made.desc, made.combo) == ("demo", "d", "H800-1")
    assert (made.python, made.entry) == ("3.11", "train.py")
    assert (made.volume, made.volume_id, made.exclude) == ("wiki", "abc", ("tests",))


def test_defaults_equal_those_of_the_old_client(tmp_path):
    made = manifest(tmp_path, GOOD.replace('  python: "3.11"\n', "  exclude: []\n"))
    assert (made.python, made.entry, made.volume_id, made.exclude) == ("3.10", "train.py", None, ())


@pytest.mark.parametrize("version", PYTHONS)
def test_every_supported_version_in_quotes_is_accepted(version, tmp_path):
    assert manifest(tmp_path, GOOD.replace("3.11", version)).python == version


@pytest.mark.parametrize(
    ("old", "new", "what", "where"),
    [
        ('"3.11"', "3.10", "quoted version", "swanlab.yaml:6 spec.python: 3.1"),
        ('"3.11"', '"3.12"', "quoted version", "3.12"),
        ("swanlab/v1", "swanlab/v2", "apiVersion must be swanlab/v1", "swanlab.yaml:1"),
        ("Folder", "Job", "kind must be Folder", "swanlab.yaml:2"),
        ("kind: Folder\n", "", "kind must be Folder", "has no kind"),
        ("  name: demo\n", "  desc: x\n", "metadata.name is missing", ""),
        ("name: demo", "name: 5", "metadata.name must be text", "swanlab.yaml:4"),
        ("name: demo", "name: demo\n  nmae: x", "no metadata.nmae", "swanlab.yaml:5"),
        ("name: demo", "name: demo\n  name: x", "metadata.name appears twice", "also on line 4"),
        ("metadata:\n  name: demo\n", "metadata: demo\n", "metadata must be a mapping", "yaml:3"),
        ('python: "3.11"', "entry: none.py", "a file in the manifest's folder", "none.py"),
        ('python: "3.11"', "entry: ../train.py", "a file in the manifest's folder", "../train.py"),
        ('python: "3.11"', "env: {A: b}", "no spec.env", "swanlab.yaml:6"),
        ('python: "3.11"', "volumes: [{id: a}, {id: b}]", "at most one volume", "lists 2"),
        ('python: "3.11"', "volumes: [{name: a}]", "spec.volumes.id is missing", ""),
        ('python: "3.11"', "volumes: [wiki]", "mapping of name and id", "swanlab.yaml:6"),
        ('python: "3.11"', "exclude: tests", "exclude must be a list", "swanlab.yaml:6"),
        ('python: "3.11"', "exclude: [../x]", "must stay in the folder", "../x"),
        ('python: "3.11"', "exclude: [/etc]", "must stay in the folder", "/etc"),
        ('python: "3.11"', "exclude: [1]", "must be text", "swanlab.yaml:6"),
    ],
)
def test_each_mistake_is_named_with_its_line(old, new, what, where, tmp_path):
    with pytest.raises(ConfigError) as refused:
        manifest(tmp_path, GOOD.replace(old, new))
    assert what in str(refused.value) and where in str(refused.value)


def test_files_without_a_manifest_are_refused_and_all_mistakes_are_reported(tmp_path):
    for text in ("[1]", "a: [", "", "just text"):
        with pytest.raises(ConfigError, match="manifest"):
            manifest(tmp_path, text)
    with pytest.raises(ConfigError, match="2 problems"):
        manifest(tmp_path, GOOD.replace("3.11", "4").replace("Folder", "x"))
    with pytest.raises(ConfigError) as refused:
        read_manifest(tmp_path / "none.yaml")
    assert "--init" in (refused.value.fix or "")


@pytest.mark.parametrize(
    ("exclude", "files", "kept"),
    [  # a pattern counts in every folder; two stars are one level
        ("[WIKI_CN, a/b]", "WIKI_CN/a sub/WIKI_CN/a sub/keep x/a/b x/a/c a/b", "sub/keep x/a/c"),
        ('["d/**/x"]', "d/x d/1/x d/1/2/x", "d/x d/1/2/x"),
    ],
)
def test_a_pattern_applies_in_every_folder_and_two_stars_match_one_level(
    exclude, files, kept, tmp_path
):
    assert names(tmp_path, exclude, *files.split()) == set(kept.split())


def test_dotfiles_are_not_packed_and_reported(tmp_path):
    (tmp_path / "empty").mkdir()
    assert names(tmp_path, "[]", ".secret_conf", ".hid/x", "k/.y", "k/z") == {"k/z"}
    packing = plan_packing(read_manifest(tmp_path / "swanlab.yaml"))
    assert any(".secret_conf" in warning and ".hid" in warning for warning in packing.warnings)


def test_a_folder_name_with_pattern_characters_is_packed(tmp_path):
    """The old client's archive came out empty here."""
    assert names(tmp_path / "a[1]*?", "[b]", "b", "c") == {"c"}


def test_a_pattern_that_leaves_out_code_deeper_down_is_warned_of(tmp_path):
    names(tmp_path, "[data]", "data/x", "package/data/__init__.py", "package/data/x.py")
    warnings = plan_packing(read_manifest(tmp_path / "swanlab.yaml")).warnings
    assert [w for w in warnings if "'data' also leaves out package/data" in w]


def test_secrets_links_and_big_files_are_warned_of(tmp_path, monkeypatch):
    monkeypatch.setenv("SWANLAB_API_KEY", "canary-in-a-file")
    made = manifest(tmp_path, GOOD, ("id_rsa", "notes.txt", "key.txt", "token.txt", "big.bin"))
    (tmp_path / "notes.txt").write_text("use canary-in-a-file for it")
    (tmp_path / "key.txt").write_text("-----BEGIN RSA " + "PRIVATE KEY-----")
    (tmp_path / "token.txt").write_text("hf_" + "a" * 30)
    os.truncate(tmp_path / "big.bin", 11 * 2**20)
    (tmp_path / "link").symlink_to("/etc/hostname")
    packing = plan_packing(made)
    warnings = "\n".join(packing.warnings)
    names = ("id_rsa looks like", "notes.txt holds the value", "key.txt holds a private")
    for word in (*names, "token.txt holds", "big.bin is", "symbolic link is not packed: link"):
        assert word in warnings
    assert "canary" not in warnings
    assert "link" not in {file.name for file in packing.files}


def test_keys_and_passwords_are_never_packed(tmp_path):
    private = "netrc _netrc my.netrc a/server.pem a/b/CERT.PEM id_rsa id_ed25519 id_ecdsa_sk"
    private += " a/id_dsa.pub id_github ID_RSA x.p12 x.pfx x.ppk"
    code = ["id_map.py", "a/id_of.py", "identity", "video_id_list.txt", "pem.txt"]
    assert names(tmp_path, "[]", *private.split(), *code) == set(code)
    warnings = plan_packing(read_manifest(tmp_path / "swanlab.yaml")).warnings
    for name in private.split():
        assert f"{name} looks like a secret by its name: never packed" in warnings


def test_the_entry_cannot_be_left_out(tmp_path):
    with pytest.raises(ConfigError, match="leaves the entry file out"):
        names(tmp_path, '["*.py"]')


def test_the_archive_holds_what_was_listed_and_has_the_same_bytes_again(tmp_path):
    made = manifest(tmp_path / "p", GOOD, ("a/b c.txt", "中文.txt"))
    packing = plan_packing(made)
    first, second = tmp_path / "1.zip", tmp_path / "2.zip"
    assert write_zip(made, packing, first) == first.stat().st_size
    write_zip(made, packing, second)
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as archive:
        assert archive.testzip() is None
        found = [(info.filename, info.file_size) for info in archive.infolist()]
        assert found == [(file.name, file.size) for file in packing.files]
    with pytest.raises(ConfigError, match="cannot be written"):
        write_zip(made, packing, tmp_path / "none" / "x.zip")


def test_the_archive_does_not_hold_itself(tmp_path, monkeypatch):
    manifest(tmp_path)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["launch", "swanlab", "--zip", "job.zip"]) == 0
    packed = sorted(zipfile.ZipFile("job.zip").namelist())
    assert packed == ["requirements.txt", "swanlab.yaml", "train.py"]


def test_init_writes_a_manifest_that_print_accepts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text("")
    assert main(["launch", "swanlab", "--init"]) == 0
    assert (tmp_path / "swanlab.yaml").read_text() == TEMPLATE
    assert main(["launch", "swanlab", "--print"]) == 0
    shown = capsys.readouterr().out
    for word in ("train.py", "2 files", "warning: there is no requirements.txt"):
        assert word in shown
    assert main(["launch", "swanlab", "--init"]) == 2


def test_a_python_that_wikillm_does_not_run_on_is_warned_of(tmp_path):
    made = manifest(tmp_path, GOOD.replace("3.11", "3.10"), ("wikillm/__init__.py",))
    assert any("needs Python 3.11" in warning for warning in plan_packing(made).warnings)


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["swanlab", "--go"], "--submit"),
        (["swanlab"], "--zip"),
        (["swanlab", "--print", "train.max_steps=5"], "takes no arguments"),
        (["multi", "--print", "--zip", "x.zip"], "it is for swanlab"),
        (["swanlab", "--print", "--nodes", "2"], "--nodes has no effect on the target swanlab"),
    ],
)
def test_flags_of_other_targets_are_refused_with_a_hint(words, hint, capsys):
    assert main(["launch", *words]) == 2
    assert hint in capsys.readouterr().err
