"""The one exception that a user is meant to read, and how its message helps."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave us.

    The message is one sentence that names the culprit, what is allowed and the way out. The commands print it without
    a traceback and exit with status 2.
    """


def nearest(word: str, known: Iterable[str]) -> str:
    """`did you mean 'x'? ` for the known word nearest to a misspelt one, or nothing if none is near."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"did you mean '{matches[0]}'? " if matches else ""
