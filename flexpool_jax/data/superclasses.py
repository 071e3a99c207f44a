"""Reading a file that groups a data set's classes into superclasses.

There are two formats. A file whose name ends with `.json` holds one object, which maps either each
superclass to the list of its classes or each class to its superclass. Any other file is text: each
line holds a class and its superclass, separated by the line's last tab or, if the line has no tab,
by its last comma. Empty lines and lines that begin with # are ignored.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from flexpool_jax import files
from flexpool_jax.data.dataset import Superclasses
from flexpool_jax.errors import UserError, unknown_name

# Largest size of a mapping file, so that a large file given by mistake is not read.
_MAX_BYTES = 16 * 2**20


def read_superclass_mapping(
    path: str | os.PathLike[str], class_names: Sequence[str]
) -> Superclasses:
    """Reads which superclass each class belongs to.

    Args:
        path: The file, in one of the formats that the docstring of this module describes.
        class_names: The data set's classes. The file must name each class exactly once.

    Returns:
        The superclasses, with their names in alphabetical order.

    Raises:
        UserError: The file cannot be read, names an unknown class, names a class twice, leaves out
            a class, or has fewer than two superclasses.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        ...     _ = file.write("cat, animal\\ndog, animal\\ntruck, vehicle")
        ...     file.flush()
        ...     superclasses = read_superclass_mapping(file.name, ["cat", "dog", "truck"])
        >>> superclasses.names, superclasses.of_class.tolist()
        (('animal', 'vehicle'), [0, 0, 1])
    """
    path = files.expanded(path)
    text = _read(path)
    pairs = _json_pairs(text, path) if path.suffix.lower() == ".json" else _text_pairs(text, path)
    superclass_of: dict[str, str] = {}
    for class_name, superclass in pairs:
        if class_name not in class_names:
            raise UserError(f"{path}: {unknown_name('class', class_name, class_names)}")
        if class_name in superclass_of:
            raise UserError(f"{path} names the class {class_name!r} twice")
        if not superclass:
            raise UserError(f"{path} gives the class {class_name!r} a superclass without a name")
        superclass_of[class_name] = superclass
    missing = [name for name in class_names if name not in superclass_of]
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{path} leaves out the class {missing[0]!r}{others}")
    names = tuple(sorted(set(superclass_of.values())))
    if len(names) < 2:
        raise UserError(f"{path} has one superclass only, {names[0]!r}; at least 2 are needed")
    indices = [names.index(superclass_of[name]) for name in class_names]
    return Superclasses(names, np.array(indices, np.int32))


def _read(path: Path) -> str:
    try:
        if not path.is_file():
            raise UserError(f"superclass.mapping: there is no file {path}")
        if path.stat().st_size > _MAX_BYTES:
            raise UserError(f"{path} has more than {_MAX_BYTES:,} bytes; a mapping has fewer")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error


def _json_pairs(text: str, path: Path) -> Iterable[tuple[str, str]]:
    try:
        # As pairs, because a dict would silently keep the last of two equal keys.
        content = json.loads(text, object_pairs_hook=list)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({error})") from error
    for item in content if isinstance(content, list) else [content]:
        match item:
            case (str(superclass), [*classes]) if all(isinstance(name, str) for name in classes):
                yield from ((name, superclass) for name in classes)
            case (str(class_name), str(superclass)):
                yield class_name, superclass
            case _:
                raise UserError(
                    f"{path} is not a mapping: it should be a JSON object from each superclass to "
                    f"a list of its classes, or from each class to its superclass; it holds "
                    f"{json.dumps(item)[:80]}"
                )


def _text_pairs(text: str, path: Path) -> Iterable[tuple[str, str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        class_name, separator, superclass = line.rpartition("\t" if "\t" in line else ",")
        if not separator:
            raise UserError(
                f"{path}, line {number}: {line.strip()[:80]!r} is not a class and its superclass "
                "with a tab or a comma between them"
            )
        yield class_name.strip(), superclass.strip()
