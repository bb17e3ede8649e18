"""Committed texts, which are compared with those that the code makes now.

GOLDEN=write in the environment writes them anew instead; `git diff` then shows what changed.
"""

import difflib
import os
from pathlib import Path


def check_golden(path: Path, text: str, what: str) -> None:
    """Compare `text` with the file at `path`; `what` says what a difference means."""
    text = text.rstrip("\n") + "\n"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text)
        return
    kept = path.read_text().splitlines()
    difference = "\n".join(
        difflib.unified_diff(
            kept, text.splitlines(), f"{path.name}, committed", "now", "", "", 2, ""
        )
    )
    test = os.environ["PYTEST_CURRENT_TEST"].partition("::")[0]
    assert not difference, (
        f"{what}. If that is meant, write {path.name} anew and commit it with the change:\n"
        f"    GOLDEN=write python -m pytest {test}\n{difference}"
    )
