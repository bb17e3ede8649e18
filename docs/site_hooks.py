"""What `make docs` adds to MkDocs: pages that are made, links, and no foreign hosts.

The documents link to each other and to the code as they lie in the repository, so that they read
well there too; site_text.py makes links of the site of these.
"""

from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import gatherd
from gatherd_server.cli.main import cli
from site_commands import commands_page
from site_text import PROJECT, linked, loaded, other_names_page

ROOT: Final = Path(__file__).parents[1]
COMMANDS: Final = "reference/commands.md"
VALUES: Final = "reference/values.md"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the project's top, and those of the commands and of all other names."""
    for name, page in PROJECT.items():
        text = (ROOT / name).read_text("utf-8")
        if name == "LICENSE":
            text = f"# Licence\n\n```text\n{text}```\n"
        files.append(File.generated(config, page, content=text))
    files.append(File.generated(config, COMMANDS, content=commands_page(cli)))
    written = "".join(path.read_text("utf-8") for path in (ROOT / "docs/reference").glob("*.md"))
    files.append(File.generated(config, VALUES, content=other_names_page(gatherd, written)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001  # the signature is MkDocs'
    """Make the repository's links the site's."""
    try:
        return linked(markdown, page.file.src_uri, lambda path: (ROOT / path).exists())
    except FileNotFoundError as error:
        raise PluginError(str(error)) from None


def on_post_build(config: MkDocsConfig) -> None:
    """PluginError naming what a page or a style sheet would load from another host."""
    site = Path(config.site_dir)
    found = [
        f"  {path.relative_to(site)}: {address}"
        for path in sorted([*site.rglob("*.html"), *site.rglob("*.css")])
        for address in loaded(path.read_text("utf-8"))
    ]
    if found:
        raise PluginError("\n".join(["the site loads from other hosts:", *found[:20]]))
