"""How the reference shows our docstrings, which aren't written in Markdown: see site_text.py."""

from typing import Any

from griffe import Class, Extension, Function, Module

from site_text import drawn, listed


class Docstrings(Extension):  # type: ignore[misc]  # griffe isn't where mypy runs
    """Rewrites docstrings."""

    def on_module(self, *, mod: Module, **_: Any) -> None:
        """A drawn tree keeps its lines."""
        if mod.docstring is not None:
            mod.docstring.value = drawn(mod.docstring.value)

    def on_function(self, *, func: Function, **_: Any) -> None:
        """The parameters are listed."""
        if func.docstring is not None:
            names = {parameter.name for parameter in func.parameters}
            func.docstring.value = listed(func.docstring.value, names)

    def on_class(self, *, cls: Class, **_: Any) -> None:
        """A dataclass lists its fields in the same way."""
        if cls.docstring is not None:
            cls.docstring.value = listed(cls.docstring.value, set(cls.attributes))
