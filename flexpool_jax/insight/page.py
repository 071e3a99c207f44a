"""Writes one self-contained HTML page about a run; inspection.js displays the data."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flexpool_jax import files, pages
from flexpool_jax.data import Split
from flexpool_jax.insight.evidence_maps import EvidenceMaps
from flexpool_jax.insight.probe_report import read_probe
from flexpool_jax.pages.curves import Point, read_metrics, thinned

# Limits that keep the page at a few megabytes.
_MAX_WEIGHTS = 150_000  # of a stage
_MAX_POINTS = 400  # of a curve
_MAX_SIDE = 160  # pixels of a picture
_MAX_THUMBNAILS = 24  # pictures of errors


def write_page(
    path: Path,
    workdir: Path,
    report: Mapping[str, Any],
    pools: Mapping[str, np.ndarray],
    evidence: EvidenceMaps | None,
    split: Split,
    summary: str,
) -> None:
    """Writes the page of an inspection.

    Args:
        path: path of the page.
        workdir: folder of the run; its metrics.jsonl is shown if it exists, and its probe.json if
            it is about the same weights.
        report: content of inspect.json.
        pools: weights [H, W, C] by stage.
        evidence: evidence maps; None if there are none.
        split: images that were evaluated.
        summary: table of the model's layers.
    """
    shown = {
        **report,
        # The maps are written as arrays below.
        "evidence": {k: v for k, v in report["evidence"].items() if k != "images"},
        "errors": [
            error | {"image": data_uri(split.images[error["index"]])}
            for error in report["errors"][:_MAX_THUMBNAILS]
        ],
    }
    probe = read_probe(workdir)
    data = {
        "name": workdir.name,
        "report": shown,
        "curves": read_curves(workdir),
        "probe": probe if files.measures_same_model(probe, report) else None,
        "weights": {stage: _encode_weights(w) for stage, w in pools.items()},
        "evidence": [] if evidence is None else _encode_evidence(evidence, report, split),
        "summary": summary,
    }
    program = Path(__file__).with_name("inspection.js")
    pages.write_page(path, f"{workdir.name}: inspection", data, program)


def read_curves(workdir: Path) -> list[dict[str, Any]]:
    """Reads every number of a run's metrics.jsonl as a curve.

    Returns:
        A curve for each split and name with at least two points, in the order of the file. It has
        the fields ``split``, ``name`` and ``points``, at most 400 pairs of an epoch and a value.
        The list is empty if there is no such file.
    """
    curves: dict[tuple[str, str], list[Point]] = {}
    for split, _, epoch, values in read_metrics(workdir):
        for name, value in values.items():
            curves.setdefault((split, name), []).append((round(epoch, 4), value))
    return [
        {"split": split, "name": name, "points": thinned(points, _MAX_POINTS)}
        for (split, name), points in curves.items()
        if len(points) > 1
    ]


def data_uri(image: np.ndarray) -> str:
    """Encodes an image, uint8 [H, W, C], as a data URI; scales it down to at most 160 pixels.

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
    """Encodes an array as little-endian float32 in base64."""
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
    evidence: EvidenceMaps, report: Mapping[str, Any], split: Split
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
