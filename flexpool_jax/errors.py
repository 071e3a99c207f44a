"""The exceptions that the command line turns into one line and an exit status.

They stand alone, import nothing but the standard library, and may be raised from any module;
`launch.py` is the only place that catches them.
"""

import difflib
from collections.abc import Iterable

# How like a name must be to be offered, from 0 to 1 (difflib's ratio).
_CUTOFF = 0.5


class UserError(ValueError):
    """A mistake the user can mend, in one line: what was given, what is allowed, closest match.

    It is a `ValueError`, so that callers of the library need not know of the class.
    """


class TrainingDiverged(Exception):
    """The loss became NaN or infinite; the message names the step and the last good checkpoint."""


class SweepFailed(Exception):
    """Some runs of a sweep failed, the others were run all the same; the message names those."""


class Interrupted(Exception):
    """The process was told to stop and did so once its state was saved; it may be started again."""


class PeerLost(Exception):
    """Another process of the same run has ended; all of them may be started again."""


def one_line(error: object) -> str:
    """What an exception says, in one line of at most 200 characters; else the name of its class.

    Example:
        >>> one_line(ValueError("a sentence\\nover two lines")), one_line(EOFError())
        ('a sentence over two lines', 'EOFError')
    """
    return " ".join(str(error).split())[:200] or type(error).__name__


def closest_name(given: str, allowed: Iterable[str]) -> str | None:
    """Returns the allowed name most like the given one, letter case aside; None if none is like it.

    Example:
        >>> closest_name("Restnet20", ["resnet20", "resnet32", "vgg11"])
        'resnet20'
    """
    given = given.lower()

    def likeness(name: str) -> tuple[float, int]:
        # Of equally like names the one with more letters in place: resnet2O is not resnet32.
        name = name.lower()
        in_place = sum(a == b for a, b in zip(name, given, strict=False))
        return difflib.SequenceMatcher(None, name, given).ratio(), in_place

    best = max(allowed, key=likeness, default=None)
    return best if best is not None and likeness(best)[0] >= _CUTOFF else None


def unknown_name(kind: str, given: object, allowed: Iterable[str]) -> UserError:
    """Builds the error for a name that is not one of those allowed. The caller raises it.

    Args:
        kind: What the name stands for, e.g. "pool".
        given: What the user wrote.
        allowed: Every valid name, in the order in which they are to be listed.

    Returns:
        An error whose message names the closest match, where there is one, and all valid names.

    Example:
        >>> print(unknown_name("pool", "flexpol", ["avg", "flexpool"]))
        unknown pool 'flexpol'; did you mean 'flexpool'? allowed: avg, flexpool
    """
    names = list(allowed)
    match = closest_name(str(given), names)
    hint = f" did you mean {match!r}?" if match else ""
    return UserError(f"unknown {kind} {given!r};{hint} allowed: {', '.join(names)}")
