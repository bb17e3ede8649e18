"""What a user sees is what the committed texts say, so no rename or move changes it unnoticed."""

from pathlib import Path

from gatherd_server.cli.main import cli
from public.description import described_api, described_commands
from support.golden import check_golden

HERE = Path(__file__).parent


def test_the_python_api_is_as_committed() -> None:
    what = "names, signatures or docstrings that users of the SDK see have changed"
    check_golden(HERE / "api.txt", described_api(), what)


def test_the_help_of_every_verb_is_as_committed() -> None:
    what = "what `gatherd --help` or a verb's --help prints has changed"
    check_golden(HERE / "commands.txt", described_commands(cli), what)
