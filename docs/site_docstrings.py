"""For the site, the arguments in a docstring become a list.

A docstring has one argument a paragraph line, `name: text`, with the text running on over the
lines after it. In Markdown these would be one paragraph.
"""

import re
from typing import Any

from griffe import Class, Extension, Function, Module

_TREE = re.compile(r"^.*\n(?:[│├└ ].*(?:\n|$))+", re.MULTILINE)
_ARGUMENT = re.compile(r"(?P<names>[a-z]\w*(?:, [a-z]\w*)*): ")


class Arguments(Extension):  # type: ignore[misc]  # griffe isn't where mypy runs
    """Rewrites docstrings."""

    def on_module(self, *, mod: Module, **_: Any) -> None:
        """A drawn tree keeps its lines."""
        if mod.docstring is not None:
            mod.docstring.value = _TREE.sub(r"```text\n\g<0>```\n", mod.docstring.value)

    def on_function(self, *, func: Function, **_: Any) -> None:
        """Only names of the function's own parameters begin an argument."""
        if func.docstring is not None:
            names = {parameter.name for parameter in func.parameters}
            func.docstring.value = listed(func.docstring.value, names)

    def on_class(self, *, cls: Class, **_: Any) -> None:
        """A dataclass lists its fields in the same way."""
        if cls.docstring is not None:
            cls.docstring.value = listed(cls.docstring.value, set(cls.attributes))


def listed(text: str, names: set[str]) -> str:
    """`text`, with the lines that begin with one of `names` as items of Markdown."""
    lines: list[str] = []
    inside = False
    for line in text.splitlines():
        found = _ARGUMENT.match(line)
        if found and names.issuperset(found["names"].split(", ")):
            if not inside:
                lines.append("")
            inside = True
            shown = ", ".join(f"`{name}`" for name in found["names"].split(", "))
            lines.append(f"- {shown}: {line[found.end() :]}")
        elif inside and line.startswith(" "):
            lines.append(f"    - {line.strip()}")
        elif inside and line:
            lines.append(f"    {line.strip()}")
        else:
            inside = False
            lines.append(line)
    return "\n".join(lines)
