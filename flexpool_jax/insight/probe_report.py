"""Reads probe.json, and groups its changes under titles."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flexpool_jax import files, layout

_STRENGTHS = ("rank", "pixels", "sd", "sigma", "factor")


def read_probe(workdir: Path) -> dict[str, Any]:
    """Reads a workdir's probe.json; {} if there is no such file, or if it is damaged."""
    found = files.read_json_if_whole(workdir / layout.PROBE_FILE)
    lists = (found.get(name) for name in ("interventions", "perturbations"))
    is_whole = isinstance(found.get("baseline"), dict) and all(isinstance(x, list) for x in lists)
    return found if is_whole else {}


def by_title(report: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """Groups a probe's changes by title: name and strength; a shift's four directions share one.

    Example:
        >>> shifts = [{"name": "shift", "pixels": 2, "direction": d} for d in ("left", "right")]
        >>> report = {"interventions": [{"name": "channel_means"}], "perturbations": shifts}
        >>> {title: len(entries) for title, entries in by_title(report).items()}
        {'channel means': 1, 'shift 2': 2}
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for entry in (*report["interventions"], *report["perturbations"]):
        strengths = [f"{entry[key]:g}" for key in _STRENGTHS if key in entry]
        title = " ".join([entry["name"].replace("_", " "), *strengths])
        found.setdefault(title, []).append(entry)
    return found
