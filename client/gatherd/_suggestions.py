"""“Did you mean …?” for a name that isn't known."""

from collections.abc import Iterable
from typing import Final

# Comparing two names takes the product of their lengths, and they come from strangers.
NAMES_COMPARED_MAX: Final = 1_000
NAME_CHARS_MAX: Final = 128


def near(name: object, known: Iterable[str], count: int = 3) -> list[str]:
    """At most `count` of the `known` names that are most like `name`, the nearest first."""
    if not isinstance(name, str) or len(name) > NAME_CHARS_MAX:
        return []
    import difflib  # rarely needed, as is all of this

    compared = [one for one, _ in zip(known, range(NAMES_COMPARED_MAX), strict=False)]
    exact = [one for one in compared if one.casefold() == name.casefold()]
    others = difflib.get_close_matches(name, compared, n=count)
    return list(dict.fromkeys([*exact, *others]))[:count]


def did_you_mean(names: Iterable[str]) -> str:
    """The question that ends an error's message: "; did you mean 'a' or 'b'?", "" for no names."""
    listed = " or ".join(map(repr, names))
    return f"; did you mean {listed}?" if listed else ""
