"""Writes one self-contained HTML page about a run; inspection.js shows what it is given here."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flexpool_jax import files
from flexpool_jax.data import Split
from flexpool_jax.insight.evidence import Evidence
from flexpool_jax.pages import render
from flexpool_jax.training.metrics import METRICS_FILE

# What keeps the page at a few megabytes.
_MAX_WEIGHTS, _MAX_POINTS, _MAX_SIDE, _MAX_THUMBNAILS = 150_000, 400, 160, 24


def write_page(
    path: Path,
    workdir: Path,
    report: Mapping[str, Any],
    pools: Mapping[str, np.ndarray],
    evidence: Evidence | None,
    split: Split,
    summary: str,
) -> None:
    """Writes the page of an inspection.

    Args:
        path: of the page.
        workdir: of the run; its metrics.jsonl and probe.json are shown where they are there.
        report: what inspect.json holds.
        pools: weights [H, W, C] by stage.
        evidence: None where there is none.
        split: the images that were evaluated.
        summary: the table of layers.
    """
    shown = dict(report)
    # Its maps are given as arrays below.
    shown["evidence"] = {k: v for k, v in report["evidence"].items() if k != "images"}
    shown["errors"] = report["errors"][:_MAX_THUMBNAILS]
    for error in shown["errors"]:
        error["image"] = data_uri(split.images[error["index"]])
    data = {
        "name": workdir.name,
        "report": shown,
        "curves": read_curves(workdir / METRICS_FILE),
        "probe": _read_probe(workdir / "probe.json"),
        "weights": {stage: _encode_weights(w) for stage, w in pools.items()},
        "evidence": [] if evidence is None else _encode_evidence(evidence, report, split),
        "summary": summary,
    }
    program = resources.files("flexpool_jax.insight") / "inspection.js"
    text = render(f"{workdir.name}: inspection", data, program.read_text("utf-8"))
    files.write_whole(path, text.encode())


def read_curves(path: Path) -> list[dict[str, Any]]:
    """Reads every number of a metrics.jsonl as a curve.

    Returns:
        ``split``, ``name`` and ``points``, at most 400 pairs of an epoch and a value, for each that
        has at least two points, in the order of the file. Empty where there is no such file.
    """
    curves: dict[tuple[str, str], list[tuple[float, float]]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        try:
            values = json.loads(line)
            split, epoch = values.pop("split"), float(values.pop("epoch"))
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # Torn by a kill; the run's own reader cuts it off.
        values.pop("step", None)
        for name, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value):
                curves.setdefault((str(split), name), []).append((round(epoch, 4), value))
    return [
        {"split": split, "name": name, "points": _thinned(points)}
        for (split, name), points in curves.items()
        if len(points) > 1
    ]


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Evenly chosen points, the first and the last among them."""
    places = np.linspace(0, len(points) - 1, min(_MAX_POINTS, len(points))).round().astype(int)
    return [(points[place][0], float(f"{points[place][1]:.6g}")) for place in places]


def data_uri(image: np.ndarray) -> str:
    """A small image as a data URI: uint8 [H, W, C], scaled down to 160 pixels if it is larger.

    Example:
        >>> data_uri(np.zeros((8, 8, 1), np.uint8))[:22]
        'data:image/png;base64,'
    """
    picture = Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image)
    buffer = io.BytesIO()
    if max(picture.size) > 64:
        picture = picture.convert("RGB")
        picture.thumbnail((_MAX_SIDE, _MAX_SIDE))
        picture.save(buffer, "JPEG", quality=85)
        kind = "jpeg"
    else:
        picture.save(buffer, "PNG")
        kind = "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _floats(values: np.ndarray) -> str:
    """Little-endian float32 in base64."""
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _encode_weights(w: np.ndarray) -> dict[str, Any]:
    height, width, channels = w.shape
    shown = min(channels, max(1, _MAX_WEIGHTS // (height * width)))
    return {
        "height": height,
        "width": width,
        "channels": channels,
        "shown": shown,
        # One channel after another.
        "values": _floats(np.moveaxis(w[..., :shown], -1, 0)),
        "reach": float(np.abs(w - 1 / (height * width)).max()),
    }


def _encode_evidence(
    evidence: Evidence, report: Mapping[str, Any], split: Split
) -> list[dict[str, Any]]:
    height, width = evidence.maps.shape[2:]
    return [
        {
            **{key: image[key] for key in ("index", "label", "prediction", "confidence")},
            "image": data_uri(split.images[image["index"]]),
            "height": height,
            "width": width,
            "classes": evidence.classes[row].tolist(),
            "logits": [round(float(value), 4) for value in evidence.logits[row]],
            "bias": [round(float(value), 4) for value in evidence.bias[row]],
            "values": _floats(evidence.maps[row]),
        }
        for row, image in enumerate(report["evidence"]["images"])
    ]


def _read_probe(path: Path) -> dict[str, Any] | None:
    """What --mode=probe wrote; None where it did not, or where the file is damaged."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        whole = all(isinstance(value[name], list) for name in ("interventions", "perturbations"))
        return value if whole and isinstance(value["baseline"], dict) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None
