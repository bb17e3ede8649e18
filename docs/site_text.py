"""Texts of the site: links, addresses of other hosts, docstrings. None of its tools is needed."""

import posixpath
import re
from collections.abc import Callable
from types import ModuleType
from typing import Final

# Files at the top of the project, and the pages that they are.
PROJECT: Final = {
    "README.md": "project/overview.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "LICENSE": "project/license.md",
}
_SOURCES: Final = {page: name for name, page in PROJECT.items()}

_LINK: Final = re.compile(r"(?P<text>!?\[[^\]]*\])\((?P<target>[^)\s]+)\)")
_FENCE: Final = re.compile(r"^```.*?^```\s*$", re.MULTILINE | re.DOTALL)
_LOADED: Final = re.compile(
    r"<(?:script|img|iframe|source|embed)\b[^>]*?\bsrc=[\"']?(?P<src>(?:https?:)?//[^\"'\s>]+)"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preload|preconnect|icon|modulepreload))"
    r"[^>]*?\bhref=[\"']?(?P<href>(?:https?:)?//[^\"'\s>]+)"
    r"|url\([\"']?(?P<url>(?:https?:)?//[^\"')\s]+)"
)
_TREE: Final = re.compile(r"^.*\n(?:[│├└ ].*(?:\n|$))+", re.MULTILINE)
_ARGUMENT: Final = re.compile(r"(?P<names>[a-z]\w*(?:, [a-z]\w*)*): ")


def linked(markdown: str, uri: str, exists: Callable[[str], bool]) -> str:
    """The page `uri`, with the repository's links as links of the site, outside blocks of code.

    A link to a file that is a page leads to that page. A link to any other file becomes the file's
    name; FileNotFoundError when `exists` doesn't know it. Paths are as seen from the project's top.
    """
    source = _SOURCES.get(uri, f"docs/{uri}")

    def link(found: re.Match[str]) -> str:
        path, hash_, anchor = found["target"].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return found.group()
        there = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        page = PROJECT.get(there) or (there.startswith("docs/") and there.removeprefix("docs/"))
        if page:
            relative = posixpath.relpath(page, posixpath.dirname(uri) or ".")
            return f"{found['text']}({relative}{hash_}{anchor})"
        if not exists(there):
            raise FileNotFoundError(f"{source} links to {found['target']}, which isn't there")
        name = found["text"][1:-1]
        return name if there in name else f"{name} (`{there}`)"

    written: list[str] = []
    end = 0
    for fence in _FENCE.finditer(markdown):
        written += [_LINK.sub(link, markdown[end : fence.start()]), fence.group()]
        end = fence.end()
    return "".join([*written, _LINK.sub(link, markdown[end:])])


def loaded(text: str) -> list[str]:
    """The addresses of other hosts from which a page or a style sheet loads something."""
    parts = [found.groupdict() for found in _LOADED.finditer(text)]
    return [address for part in parts for address in part.values() if address]


def other_names_page(package: ModuleType, written: str) -> str:
    """The page of the reference with every public name that `written`, its other pages, lack."""
    lines = ["# Other names", "", "What calls take and return, besides arrays."]
    for name in package.__all__:
        is_error = getattr(getattr(package, name), "__module__", "") == f"{package.__name__}.errors"
        if not is_error and not name.startswith("__"):
            directive = f"::: {package.__name__}.{name}"
            lines += [] if f"{directive}\n" in written else ["", directive]
    return "\n".join([*lines, ""])


def drawn(docstring: str) -> str:
    """A docstring whose tree, drawn in characters, keeps its lines."""
    return _TREE.sub("```text\n\\g<0>```\n", docstring)


def listed(docstring: str, names: set[str]) -> str:
    """A docstring with its arguments as a list.

    Each begins a line, `name: text`, and runs on over the lines after it. In Markdown these would
    be one paragraph. Only `names` begin one.
    """
    lines: list[str] = []
    inside = False
    for line in docstring.splitlines():
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
            lines.append(f"    {line}")
        else:
            inside = False
            lines.append(line)
    return "\n".join(lines)
