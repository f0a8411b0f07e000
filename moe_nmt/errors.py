"""The one exception that a user is meant to read, and how its message helps."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in what the user gave us.

    The message is one sentence that names the culprit, what is allowed and the way out. The commands print it without
    a traceback and exit with status 2.
    """


def suggest(word: str, known: Iterable[str], label: str = "Known") -> str:
    """The end of a message on an unknown word: `; did you mean 'x'? Known: x, y.`, or `. Known: x, y.` if none is near.

    At most 40 names are listed.
    """
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.4)
    listed = ", ".join(known[:40]) + (" …" if len(known) > 40 else "")
    return (f"; did you mean '{near[0]}'? " if near else ". ") + f"{label}: {listed or 'none'}."
