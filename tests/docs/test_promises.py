"""Every guarantee in README.md names tests, and these are there."""

import re
from pathlib import Path

import pytest
import yaml

TESTS = Path(__file__).parents[1]
README = TESTS.parent / "README.md"
PROMISES: dict[str, list[str]] = yaml.safe_load((TESTS / "docs/promises.yaml").read_text())
LINES_MAX = 150


def test_every_guarantee_has_tests_and_no_other_promise_is_listed() -> None:
    guarantees = README.read_text().split("## Guarantees\n")[1].split("\n## ")[0]
    assert re.findall(r"^\| \*\*(.+?)\*\* \|", guarantees, re.MULTILINE) == [*PROMISES]


@pytest.mark.parametrize("promise", PROMISES)
def test_the_tests_of_a_promise_are_there(promise: str) -> None:
    assert PROMISES[promise]
    for test in PROMISES[promise]:
        path, _, name = test.partition("::")
        found = re.search(rf"^(?:async )?def {name}\(", (TESTS / path).read_text(), re.MULTILINE)
        assert found, test


def test_readme_stays_short() -> None:
    assert len(README.read_text().splitlines()) <= LINES_MAX
