"""What fuzzing found stays found, and every decoder stands some inputs of it in each run."""

from collections.abc import Iterator

import pytest

from fuzz.fuzz import all_targets, run_batch
from fuzz.target import Target

EXAMPLES = 25


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Target]]:
    with all_targets(tmp_path_factory.mktemp("fuzz")) as found:
        yield {target.name: target for target in found}


def test_every_decoder_takes_what_is_whole_and_stands_what_is_not(
    targets: dict[str, Target],
) -> None:
    assert len(targets) > 30
    for target in targets.values():
        for data in target.seeds:
            target.check(data)
        run_batch(target, 1, EXAMPLES)
