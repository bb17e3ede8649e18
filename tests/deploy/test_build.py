"""A wheel says which commit it was built from, or that it doesn't know, and carries the licence."""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

import pytest
from hatchling.build import build_sdist, build_wheel

from gatherd_server.build import commit_of_checkout

ROOT = Path(__file__).parents[2]
PACKED = (
    ".gitignore",
    "pyproject.toml",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "client",
    "proto",
    "service",
)
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
BUILD = "from gatherd_server.build import this_build; print(this_build())"
GIVEN = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def no_commit_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GATHERD_COMMIT", raising=False)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project's files, the current folder, in no repository."""
    copy = tmp_path / "project"
    copy.mkdir()
    for name in PACKED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    monkeypatch.chdir(copy)
    return copy


def git(tree: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(tree), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def committed(tree: Path) -> str:
    """The commit that holds all of `tree`."""
    git(tree, "init", "--quiet")
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "--message", "all")
    return git(tree, "rev-parse", "HEAD")


def wheel(folder: Path) -> Path:
    """A wheel of the current folder, in `folder`."""
    folder.mkdir(exist_ok=True)
    return folder / build_wheel(str(folder))


def unpacked(wheel: Path, folder: Path) -> Path:
    """`folder`, with what installing `wheel` puts there."""
    with ZipFile(wheel) as packed:
        packed.extractall(folder)
    return folder


def told(folders: list[Path], *program: str) -> str:
    """What Python prints that runs `program` with the packages in `folders`."""
    done = subprocess.run(
        [sys.executable, "-P", *program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def metadata(wheel: Path) -> Message:
    with ZipFile(wheel) as packed:
        (name,) = [name for name in packed.namelist() if name.endswith(".dist-info/METADATA")]
        return HeaderParser().parsestr(packed.read(name).decode())


def test_a_wheel_of_a_repository_names_its_commit(tree: Path, tmp_path: Path) -> None:
    commit = committed(tree)
    installed = unpacked(wheel(tmp_path / "out"), tmp_path / "installed")
    printed = told([installed], "-m", "gatherd_server", "--version")
    assert printed == f"gatherd {VERSION} (commit {commit})\n"


def test_a_checkout_names_the_commit_that_is_checked_out(tree: Path) -> None:
    commit = committed(tree)
    assert told([tree / "service"], "-c", BUILD) == f"gatherd {VERSION} (commit {commit})\n"


def test_without_git_a_checkout_says_unknown(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed(tree)
    monkeypatch.setenv("PATH", "")
    assert commit_of_checkout(tree) == "unknown"


@pytest.mark.parametrize("name", ["service/gatherd_server/types.py", "client/gatherd/new.py"])
def test_a_wheel_of_changed_code_says_so(tree: Path, tmp_path: Path, name: str) -> None:
    commit = committed(tree)
    with open(tree / name, "a") as changed:
        changed.write("# changed\n")
    with ZipFile(wheel(tmp_path / "out")) as packed:
        assert packed.read("gatherd_server/commit.txt").decode() == f"{commit}-dirty\n"


def test_a_wheel_of_files_without_a_repository_says_unknown(tree: Path, tmp_path: Path) -> None:
    # One around it says nothing about it.
    git(tmp_path, "init", "--quiet")
    installed = unpacked(wheel(tmp_path / "out"), tmp_path / "installed")
    assert told([installed], "-c", BUILD) == f"gatherd {VERSION} (commit unknown)\n"


def test_a_wheel_of_an_sdist_names_the_sdists_commit(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = committed(tree)
    with tarfile.open(tmp_path / build_sdist(str(tmp_path))) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    monkeypatch.chdir(unpacked)
    with ZipFile(wheel(tmp_path / "out")) as built:
        assert built.read("gatherd_server/commit.txt").decode() == f"{commit}\n"


def test_an_images_build_is_told_the_commit(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATHERD_COMMIT", GIVEN)
    with ZipFile(wheel(tmp_path / "out")) as packed:
        assert packed.read("gatherd_server/commit.txt").decode() == f"{GIVEN}\n"


def test_what_is_no_commit_fails_the_build(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GATHERD_COMMIT", "v1.2; echo")
    with pytest.raises(ValueError, match="git rev-parse HEAD"):
        wheel(tmp_path / "out")


def test_the_metadata_has_licence_and_addresses(tree: Path, tmp_path: Path) -> None:
    built = wheel(tmp_path / "out")
    fields = metadata(built)
    assert fields["License-Expression"] == "Apache-2.0"
    assert fields.get_all("License-File") == ["LICENSE"]
    addresses = dict(line.split(", ") for line in fields.get_all("Project-URL", []))
    assert addresses.keys() == {"Documentation", "Changelog", "Contributing"}
    for path in addresses.values():
        assert (ROOT / path).is_file(), path
    with ZipFile(built) as packed:
        (text,) = [name for name in packed.namelist() if name.endswith("/licenses/LICENSE")]
        assert packed.read(text) == (ROOT / "LICENSE").read_bytes()
