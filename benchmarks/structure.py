"""Counts what a reader of the code meets: functions and files of one run, and lines of code.

    python -m benchmarks.structure

Functions and files are those of this project that `launch.py` runs, from its start to the dispatch
of the first update, with prepared data. Lambdas and comprehensions count as part of the function
that contains them. Lines are those of launch.py, the package and the configs, without docstrings,
comments and blank lines.
"""

from __future__ import annotations

import argparse
import ast
import collections
import contextlib
import inspect
import io
import sys
import tempfile
import tokenize
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from benchmarks import report

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "flexpool_jax"
OWN = (f"{PACKAGE}/", f"{ROOT}/configs/", f"{ROOT}/launch.py")


def functions_before_first_update(*arguments: str) -> set[tuple[str, str]]:
    """Returns file and qualified name of each own function that runs before the first update.

    Args:
        arguments: command-line arguments of launch.py.
    """
    import jax

    import launch

    codes: set[CodeType] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(OWN):
            codes.add(frame.f_code)

    pmap = jax.pmap

    def pmap_until_first_call(*arguments: Any, **options: Any) -> Any:
        program = pmap(*arguments, **options)

        def run(*arguments: Any) -> Any:
            sys.setprofile(None)
            return program(*arguments)

        return run

    jax.pmap = pmap_until_first_call
    sys.setprofile(note)
    try:
        status = launch.main(arguments)
    finally:
        sys.setprofile(None)
        jax.pmap = pmap
    if status:
        raise SystemExit(status)
    return {
        (str(Path(code.co_filename).relative_to(ROOT)), _function(code))
        for code in codes
        # The code of modules and class bodies does not have this flag.
        if code.co_flags & inspect.CO_OPTIMIZED and not code.co_qualname.startswith("<")
    }


def _function(code: CodeType) -> str:
    """The qualified name of the function that contains the code."""
    names = code.co_qualname.split(".")
    while len(names) > 1 and names[-1].startswith("<"):
        names.pop()
    return ".".join(names)


def code_lines(path: Path) -> int:
    """The lines of a Python file that hold code: no blank ones, comments or docstrings."""
    text = path.read_text(encoding="utf-8")
    docstrings = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    blank = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in blank and token.type != tokenize.ENDMARKER:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def main() -> None:
    """Runs one epoch on the digits and prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", action="store_true", help="list the functions too")
    names = parser.parse_args().names
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        import launch

        arguments = (
            "--config=configs/digits.py:flexpool,reg,sac",
            f"--config.dataset.data_dir={folder}/data",
            "--config.dataset.image_size=8",
            "--config.num_epochs=1",
        )
        if status := launch.main([*arguments, "--mode=prepare"]):
            raise SystemExit(status)
        found = functions_before_first_update(*arguments, f"--workdir={folder}/run")
    by_file = collections.Counter(file for file, _ in found)
    print(f"before the first update: {len(found)} functions in {len(by_file)} files")
    if names:
        for file, function in sorted(found):
            print(f"  {file}: {function}")
    lines: collections.Counter[str] = collections.Counter()
    for path in (ROOT / "launch.py", *PACKAGE.rglob("*.py"), *ROOT.glob("configs/*.py")):
        lines[_folder(path)] += code_lines(path)
    functions = collections.Counter(_folder(ROOT / file) for file, _ in found)
    rows = [[name, f"{lines[name]:,}", str(functions[name])] for name in sorted(lines)]
    report.print_table(
        "code by folder",
        ["", "lines", "functions before the first update"],
        [*rows, ["all", f"{lines.total():,}", f"{functions.total():,}"]],
    )


def _folder(path: Path) -> str:
    """The subpackage of a file, or the file's own name if it is in no subpackage."""
    parts = path.relative_to(ROOT).parts
    return "/".join(parts[:2]) if parts[0] == PACKAGE.name else parts[0]


if __name__ == "__main__":
    main()
