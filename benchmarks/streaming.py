"""Claim: streamed training takes the same memory for any number of images, and seldom waits.

    taskset -c 0 python -m benchmarks.streaming

Prints three tables, for one core:

- how many photographs of ImageNet's size the core reads per second of its CPU time, in which other
  programs on the machine do not count;
- the memory of a run with all images on the device, and of a run with streamed images. Its network
  is a single convolution, so that most of its time is reading;
- the share of the time that ResNet20 waits for streamed images of 32 pixels.

Images are noise at all scales, and their compressed size is that of photographs.
"""

from __future__ import annotations

import argparse
import io
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import report, workers
from benchmarks.memory import peak_resident
from benchmarks.workers import Contestant
from flexpool_jax.data import images

CLASSES = 10
TEST_IMAGES = 1000
# The number of different images; more of them would not change how images are read.
DISTINCT = 100
SECONDS = 10.0


def photograph(random: np.random.Generator, height: int, width: int) -> bytes:
    """Returns a JPEG file of noise that is stronger at coarse scales, as in photographs."""
    pixels = np.full((height, width, 3), 128.0)
    for level in range(8):
        side = (max(1, width >> level), max(1, height >> level))
        noise = random.normal(0, 11 * 1.25**level, (side[1], side[0], 3))
        for channel in range(3):
            plane = Image.fromarray(noise[..., channel].astype(np.float32), mode="F")
            resized = plane.resize((width, height), Image.Resampling.BILINEAR)
            pixels[..., channel] += np.asarray(resized)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def photographs(height: int, width: int) -> list[bytes]:
    """Returns `DISTINCT` different JPEG files."""
    random = np.random.default_rng(0)
    return [photograph(random, height, width) for _ in range(DISTINCT)]


def read_rate() -> list[str]:
    """Returns a row: images that a core decodes, resizes and crops per second of CPU time."""
    files = photographs(375, 500)
    fit = images.Fit(256, crops=True)
    count, started = 0, time.process_time()
    while time.process_time() - started < SECONDS:
        for encoded in files:
            images.decode(encoded, 3, fit)
        count += len(files)
    rate = count / (time.process_time() - started)
    size = sum(map(len, files)) / len(files)
    return ["500x375 to 256x256", f"{size / 1000:.0f} kB", f"{rate:,.0f}"]


def prepare(folder: str, count: int, side: int) -> str:
    """Prepares a data set of `count` training images of `side` pixels, and returns its name."""
    from flexpool_jax.data.prepare import prepare
    from flexpool_jax.data.registry import Contents, Example, Source

    files = photographs(side, side)

    def examples(count: int) -> Any:
        return (Example(files[i % DISTINCT], i % CLASSES) for i in range(count))

    counts = {"train": count, "test": TEST_IMAGES}
    contents = Contents(
        (side, side, 3),
        [str(label) for label in range(CLASSES)],
        {split: examples(n) for split, n in counts.items()},
    )
    name = f"noise_{side}_{count}"
    source = Source(
        name,
        "Noise.",
        "",
        read=lambda files: contents,
        num_classes=CLASSES,
        num_examples=counts,
    )
    prepare(source, Path(folder), None)
    return name


def work(folder: str, count: int, side: int, placement: str, model: str, epochs: int) -> None:
    """Runs as a worker: trains on a prepared set; answers with peak memory, rate and waiting."""
    from flax import linen as nn

    from configs import default
    from flexpool_jax import register_model, train

    class OneConvolution(nn.Module):
        @nn.compact
        def __call__(self, images: Any, train: bool = False) -> Any:
            return {"stage1": nn.relu(nn.Conv(8, (8, 8), strides=8)(images))}

    register_model("one_convolution", num_stages=1)(lambda **fields: OneConvolution())
    config = default.get_config("flexpool")
    config.update_from_flattened_dict(
        {
            "model": model,
            "dataset.name": f"noise_{side}_{count}",
            "dataset.data_dir": folder,
            "dataset.placement": placement,
            "batch_size": 250,
            "num_epochs": epochs,
            "learning_rate": 0.01,
            "tensorboard": False,
        }
    )
    result = train(config, tempfile.mkdtemp(dir=folder))
    workers.reply([peak_resident(), result["images_per_second"], result["data_wait"]])


def measure(**options: Any) -> list[str]:
    """Returns the cells of a run in its own process, after a run that decodes and compiles."""
    for attempt in range(2):
        contestant = Contestant(str(attempt), options)
        peak, rate, waited = workers.only_answer("benchmarks.streaming", contestant)
    share = "–" if waited is None else f"{100 * waited:.1f} %"
    return [f"{peak / 2**20:,.0f}", f"{rate:,.0f}", share]


def main() -> None:
    """Prints the three tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    arguments = parser.parse_args()
    report.print_table(
        "Photographs that one core reads",
        ["", "JPEG", "images per second of its time"],
        [read_rate()],
    )
    header = ["peak memory, MiB", "images/s", "waiting for data"]
    tables = (
        ("Memory of a run of one convolution", "one_convolution", 1, 64, arguments.images),
        ("Waiting of ResNet20", "resnet20", 2, 32, [min(arguments.images)]),
    )
    with tempfile.TemporaryDirectory() as folder:
        for title, model, epochs, side, counts in tables:
            rows = []
            for count, placement in itertools.product(counts, ("device", "stream")):
                prepare(folder, count, side)
                options = {"placement": placement, "model": model, "epochs": epochs}
                cells = measure(folder=folder, count=count, side=side, **options)
                rows.append([f"{count:,} of {side}x{side}, {placement}", *cells])
            report.print_table(title, ["images", *header], rows)


if __name__ == "__main__":
    options = workers.worker_options()
    main() if options is None else work(**options)
