"""The exceptions that `launch.py` turns into one line and an exit status.

This module imports only the standard library, so that every module can raise these exceptions.
"""

import difflib
from collections.abc import Iterable

# The least similarity of a name that is suggested, from 0 to 1 (difflib's ratio).
_CUTOFF = 0.5


class UserError(ValueError):
    """A mistake that the user can correct.

    The message is one line: what was given, what is allowed and the closest match. The class is a
    `ValueError`, so that users of the library can catch it without knowing this class.
    """


class UnknownName(UserError):
    """A name that is not among the allowed names, which the message lists."""


class TrainingDiverged(Exception):
    """The loss or the weights became NaN or infinite.

    The message names the step and the last good checkpoint; with ``debug_nans``, the line of code.
    """


class SweepFailed(Exception):
    """Some runs of a sweep failed; the message names them.

    All other runs are finished, or other processes run them.
    """


class Interrupted(Exception):
    """The process was told to stop, and stopped after saving its state. It can be started again."""


class PeerLost(Exception):
    """Another process of the same run has ended. All processes of the run can be started again."""


def one_line(error: object, limit: int | None = 200) -> str:
    """An exception's message in one line of at most ``limit`` characters; if empty, its class.

    If ``limit`` is None, the message may have any length.

    Example:
        >>> one_line(ValueError("a sentence\\nover two lines")), one_line(EOFError())
        ('a sentence over two lines', 'EOFError')
    """
    return " ".join(str(error).split())[:limit] or type(error).__name__


def closest_name(given: str, allowed: Iterable[str]) -> str | None:
    """Returns the allowed name that is most similar to a given one, or None if none is similar.

    Upper and lower case count as equal.

    Example:
        >>> closest_name("Restnet20", ["resnet20", "resnet32", "vgg11"])
        'resnet20'
    """
    given = given.lower()

    def likeness(name: str) -> tuple[float, int]:
        # Among equally similar names, the one with more letters in the same place is preferred:
        # resnet20 rather than resnet32 for resnet2O.
        name = name.lower()
        in_place = sum(a == b for a, b in zip(name, given, strict=False))
        return difflib.SequenceMatcher(None, name, given).ratio(), in_place

    best = max(allowed, key=likeness, default=None)
    return best if best is not None and likeness(best)[0] >= _CUTOFF else None


def unknown_name(kind: str, given: object, allowed: Iterable[str]) -> UnknownName:
    """Builds the error for a name that is not among the allowed names. The caller raises it.

    Args:
        kind: What the name stands for, e.g. "pool".
        given: What the user wrote.
        allowed: All valid names, in the order in which the message lists them.

    Returns:
        An error whose message names the closest match, if there is one, and all valid names.

    Example:
        >>> print(unknown_name("pool", "flexpol", ["avg", "flexpool"]))
        unknown pool 'flexpol'; did you mean 'flexpool'? allowed: avg, flexpool
    """
    names = list(allowed)
    match = closest_name(str(given), names)
    hint = f" did you mean {match!r}?" if match else ""
    return UnknownName(f"unknown {kind} {given!r};{hint} allowed: {', '.join(names)}")
