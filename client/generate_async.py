"""Write the awaited calls, `gatherd/_calls/*_aio.py`, from the blocking ones beside them.

    python client/generate_async.py           # write them
    python client/generate_async.py --check   # exit with 1 if they are out of date

So a call is written once, and the two clients can't drift apart. Only the calls of the shells' own
methods (AWAITED) are awaited; the rest is the same text, formatted anew because `await` makes lines
longer.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).parent / "gatherd"
SOURCES: Final = (
    "_calls/lookups.py",
    "_calls/keys.py",
    "_calls/scans.py",
    "_calls/updates.py",
    "_calls/tables.py",
    "_calls/handles.py",
)
# Methods that wait, most of them the shell's own: every call of one is awaited.
AWAITED: Final = ("_run", "_upload", "_batched", "_carried", "_quick", "keys", "info")
# In a handle every call of its client's.
OF_CLIENT: Final = r"(?<!in )self\._client\.\w+\("
# What follows in a class isn't in its twin.
BLOCKING_ONLY: Final = r"^    # The blocking handle's alone:.*?(?=^\S|\Z)"
# Names that are different in the awaited client.
NAMES: Final = {
    "AllCalls": "AsyncAllCalls",
    "Batcher": "AsyncBatcher",
    "Iterator": "AsyncIterator",
    "KeyCalls": "AsyncKeyCalls",
    "LookupCalls": "AsyncLookupCalls",
    "ScanCalls": "AsyncScanCalls",
    "TableCalls": "AsyncTableCalls",
    "TableHandle": "AsyncTableHandle",
    "UpdateCalls": "AsyncUpdateCalls",
    "gatherd._batching.threads": "gatherd._batching.tasks",
    "gatherd._calls.keys": "gatherd._calls.keys_aio",
    "gatherd._calls.lookups": "gatherd._calls.lookups_aio",
    "gatherd._calls.scans": "gatherd._calls.scans_aio",
    "gatherd._calls.tables": "gatherd._calls.tables_aio",
    "gatherd._calls.updates": "gatherd._calls.updates_aio",
}
HEADER: Final = (
    "# Written by client/generate_async.py from {source}: change that, then `make calls`.\n"
)


def awaited(source: str, name: str) -> str:
    """The awaited twin of the blocking module `source`, whose file is called `name`."""
    text = re.sub(BLOCKING_ONLY, "", source, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^(    )def (?!__)", r"\1async def ", text, flags=re.MULTILINE)
    text = re.sub(
        r"^( +)yield from (self\._client\..+)$",
        r"\1async for one in \2:\n\1    yield one",
        text,
        flags=re.MULTILINE,
    )
    text = re.sub(OF_CLIENT, r"await \g<0>", text)
    text = re.sub(rf"(?<!def )\bself\.({'|'.join(AWAITED)})\(", r"await self.\1(", text)
    # An async generator has no `yield from`.
    text = re.sub(
        r"^( +)yield from (.+)$", r"\1for one in \2:\n\1    yield one", text, flags=re.MULTILINE
    )
    for blocking, twin in NAMES.items():
        text = re.sub(rf"(?<![\w.]){re.escape(blocking)}\b", twin, text)
    text = text.replace("blocking client", "awaited client")
    return _formatted(HEADER.format(source=name) + text, name)


def _formatted(text: str, name: str) -> str:
    """`text` as `make format` would leave it, by the ruff of this environment."""
    ruff = Path(sys.executable).with_name("ruff")
    told = ("--stdin-filename", str(PACKAGE / name))  # so that the settings for this path apply
    done = subprocess.run(
        [ruff, "format", *told, "-"], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"ruff can't format the twin of {name}: {done.stderr}")
    return done.stdout


def main() -> int:
    """Write or check every twin; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; compare")
    check = parser.parse_args().check
    stale = []
    for name in SOURCES:
        path = PACKAGE / name
        twin = path.with_name(f"{path.stem}_aio.py")
        text = awaited(path.read_text(), name)
        if not twin.exists() or twin.read_text() != text:
            stale.append(twin.name)
            if not check:
                twin.write_text(text)
    for name in stale:
        print(f"{name} {'is not what generate_async.py writes' if check else 'written'}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
