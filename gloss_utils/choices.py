"""One sentence for a misspelt name."""

import difflib
from collections.abc import Iterable


def check(value: str, choices: Iterable[str], what: str) -> str:
    """Return `value` if it is one of `choices`.

    Args:
        value: what the caller gave.
        choices: the known names.
        what: what is being named, as the sentence should say it ("policy", "encoder").

    Raises:
        ValueError: it is not; the message lists the choices and the nearest one.

    >>> check("scor", ["score", "rrf"], "policy")
    Traceback (most recent call last):
    ...
    ValueError: unknown policy 'scor': did you mean 'score'? Known: rrf, score
    """
    choices = sorted(choices)
    if value in choices:
        return value
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise ValueError(f"unknown {what} '{value}': {hint}Known: {', '.join(choices)}")
