"""Runs `mypy --strict` and `pyright` in strict mode over a user's script; `make check-types` does.

Each has to find every planted mistake, by its line, and nothing else. The script is checked from
outside of the repository, as a user's would be, with gatherd installed in this environment.

    python tests/typed/judge.py PYRIGHT
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPT = Path(__file__).with_name("users_script.py")
MISTAKES = 6


def planted() -> set[int]:
    """The lines of the script that have a mistake."""
    lines = SCRIPT.read_text().splitlines()
    return {number for number, line in enumerate(lines, 1) if "# mistake:" in line}


def by_mypy(script: Path) -> dict[int, str]:
    """The errors that mypy finds, by line."""
    cache = Path(__file__).parents[2] / ".mypy_cache" / "user"
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={cache}"]
    done = subprocess.run(
        [*command, str(script)], cwd=script.parent, capture_output=True, text=True
    )
    found = re.findall(r"^.*?:(\d+): error: (.*)$", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1) or not found:
        sys.exit(f"mypy didn't run: {done.stdout}{done.stderr}")
    return {int(line): message for line, message in found}


def by_pyright(script: Path, pyright: str) -> dict[int, str]:
    """The errors that pyright finds, by line."""
    config = {"typeCheckingMode": "strict", "include": [script.name], "pythonVersion": "3.11"}
    (script.parent / "pyrightconfig.json").write_text(json.dumps(config))
    command = [pyright, "--outputjson", "--pythonpath", sys.executable]
    done = subprocess.run(command, cwd=script.parent, capture_output=True, text=True)
    try:
        found = json.loads(done.stdout)["generalDiagnostics"]
    except ValueError:
        sys.exit(f"pyright didn't run: {done.stdout}{done.stderr}")
    errors = (one for one in found if one["severity"] == "error")
    return {one["range"]["start"]["line"] + 1: one["message"].splitlines()[0] for one in errors}


def main() -> int:
    """Judge both; the exit status."""
    expected, failed = planted(), False
    assert len(expected) == MISTAKES, expected
    pyright = os.path.abspath(sys.argv[1])  # noqa: PTH100 - a link to a Python isn't followed
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, SCRIPT.name)
        script.write_text(SCRIPT.read_text())
        for name, found in (
            ("mypy --strict", by_mypy(script)),
            ("pyright, strict", by_pyright(script, pyright)),
        ):
            print(f"{name}: {len(expected & found.keys())} of {len(expected)} mistakes found")
            for line in sorted(expected ^ found.keys()):
                failed = True
                print(f"  line {line}: {found.get(line, 'not found')}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
