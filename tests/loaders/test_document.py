"""docs/formats.md lists every option of import and every limit, as they are."""

from pathlib import Path

from gatherd.store.keys import KEY_BYTES_MAX
from gatherd_server.cli.importing import import_table
from gatherd_server.loaders import limits

DOCUMENT = (Path(__file__).parent.parent.parent / "docs/formats.md").read_text()
LISTED = {
    cells[1].strip(" `"): cells[2].strip()
    for cells in (line.split("|") for line in DOCUMENT.splitlines() if line.startswith("| `"))
}
INTERNAL = {"BATCH_BYTES"}


def test_every_option_is_listed() -> None:
    options = {parameter.opts[0] for parameter in import_table.params}
    listed = {name for name in LISTED if name.startswith("--")}
    assert listed == {option for option in options if option.startswith("--")}


def test_every_limit_is_listed_with_its_value() -> None:
    values = {name: value for name, value in vars(limits).items() if name.isupper()}
    defaults = limits.UnpackLimits()
    values |= {"bytes_max": defaults.bytes_max, "ratio_max": defaults.ratio_max}
    values |= {"KEY_BYTES_MAX": KEY_BYTES_MAX}
    for name in INTERNAL:
        values.pop(name, None)
    units = {"MiB": 1 << 20, "GiB": 1 << 30}
    listed = {}
    for name, text in LISTED.items():
        number, _, unit = text.replace(",", "").partition(" ")
        if name in values and number.isdigit():
            listed[name] = int(number) * units.get(unit, 1)
    assert listed == values
