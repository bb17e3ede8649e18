"""Examples of documents, as code to run."""

import re
from pathlib import Path

DOCS = Path(__file__).parent.parent.parent / "docs"


def python_blocks(document: str) -> list[str]:
    """The blocks of Python in a file of docs/, each on the lines that it has in the file."""
    text = (DOCS / document).read_text()
    return [
        "\n" * text.count("\n", 0, found.start(1)) + found.group(1)
        for found in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


def python_block(document: str, marker: str) -> str:
    """The one block that has `marker` in it."""
    (found,) = [block for block in python_blocks(document) if marker in block]
    return found
