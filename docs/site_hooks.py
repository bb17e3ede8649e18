"""What `make docs` adds to MkDocs: pages that are made, links, and no foreign hosts.

The documents link to each other and to the code as they lie in the repository, so that they read
well there too. For the site a link to a file that is a page becomes one to that page, and a link
to any other file becomes the file's name.
"""

import posixpath
import re
from pathlib import Path
from typing import Any, Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from gatherd_server.cli.main import cli
from site_commands import commands_page

ROOT: Final = Path(__file__).parents[1]
# Files at the top of the project, and the pages that they are.
PROJECT: Final = {
    "README.md": "project/overview.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "LICENSE": "project/license.md",
}
COMMANDS: Final = "reference/commands.md"
_SOURCES: Final = {page: name for name, page in PROJECT.items()}

_LINK: Final = re.compile(r"(?P<text>!?\[[^\]]*\])\((?P<target>[^)\s]+)\)")
_FENCE: Final = re.compile(r"^(?:```|~~~).*?^(?:```|~~~)\s*$", re.MULTILINE | re.DOTALL)
_LOADED: Final = re.compile(
    r"<(?:script|img|iframe|source|embed)\b[^>]*?\bsrc=[\"']?(?P<src>(?:https?:)?//[^\"'\s>]+)"
    r"|<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preload|preconnect|icon|modulepreload))"
    r"[^>]*?\bhref=[\"']?(?P<href>(?:https?:)?//[^\"'\s>]+)"
    r"|url\([\"']?(?P<url>(?:https?:)?//[^\"')\s]+)"
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the project's top, and that of the commands."""
    for name, page in PROJECT.items():
        text = (ROOT / name).read_text("utf-8")
        if name == "LICENSE":
            text = f"# Licence\n\n```text\n{text}```\n"
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, COMMANDS, content=commands_page(cli)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001  # the signature is MkDocs'
    """Turn links of the repository into links of the site, outside blocks of code."""
    uri = page.file.src_uri
    written: list[str] = []
    end = 0
    for fence in _FENCE.finditer(markdown):
        written += [_linked(markdown[end : fence.start()], uri), fence.group()]
        end = fence.end()
    return "".join([*written, _linked(markdown[end:], uri)])


def _linked(text: str, uri: str) -> str:
    source = _SOURCES.get(uri, f"docs/{uri}")

    def linked(found: re.Match[str]) -> str:
        path, hash_, anchor = found["target"].partition("#")
        if not path or re.match(r"[a-z]+:", path):
            return found.group()
        there = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        page = PROJECT.get(there) or (there.startswith("docs/") and there.removeprefix("docs/"))
        if page:
            relative = posixpath.relpath(page, posixpath.dirname(uri) or ".")
            return f"{found['text']}({relative}{hash_}{anchor})"
        if not (ROOT / there).exists():
            raise PluginError(f"{source} links to {found['target']}, which isn't there")
        name = found["text"][1:-1]
        return name if there in name else f"{name} (`{there}`)"

    return _LINK.sub(linked, text)


def on_post_build(config: MkDocsConfig) -> None:
    """PluginError naming what a page or a style sheet would load from another host."""
    found = []
    site = Path(config.site_dir)
    for path in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        found += [(path.relative_to(site), address) for address in loaded(path.read_text("utf-8"))]
    if found:
        lines = "\n".join(f"  {path}: {address}" for path, address in found[:20])
        raise PluginError(f"the site loads from other hosts:\n{lines}")


def loaded(text: str) -> list[str]:
    """The addresses of other hosts from which a page or a style sheet loads something."""
    parts: list[dict[str, Any]] = [found.groupdict() for found in _LOADED.finditer(text)]
    return [address for part in parts for address in part.values() if address]
