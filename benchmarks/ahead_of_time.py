"""Claim: what XLA makes of a training step for H100s, and the least time that it can take there.

    pip install --no-deps --target=CUDA jax-cuda12-pjrt==0.10.2 nvidia-cuda-nvcc-cu12==12.9.86
    python -m benchmarks.ahead_of_time --cuda=CUDA

No GPU is needed: XLA compiles for the one that h100.txtpb describes. The step is the one that
`set_up` builds on a GPU. The numbers are for one iteration of the loop over a dispatch's steps:

- launches: kernels and library calls; "small" ones move less than 1 MB, so that the launch itself
  takes longer than the work.
- convolutions: launches that call cuDNN. Its algorithms cannot be measured without a card, so XLA
  chooses the defaults.
- bytes: the bytes of all operands and results of the launches; a cache may save some of them.
- scratch: memory that the program holds beside its arguments and results.
- ms by bytes, ms by FLOPs: at the peaks of the card (3.35 TB/s; 989 TFLOP/s in bfloat16, 495 in
  float32, whose products are TF32 by JAX's default). The larger one is an estimate of the step's
  time; what the launches cost is not counted here.
- ms with launches: the sum over all launches but all-reduces. Each takes the time of its bytes, but
  at least 3 us (assumed).
- all-reduces: the sums over all devices that a step waits for; MB: their operands in one device.

With `--devices`, the batch is shared by that many, and all other columns are about one of them.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from benchmarks import report

TARGET = Path(__file__).with_name("h100.txtpb")
BYTES_PER_SECOND = 3.35e12
FLOPS_PER_SECOND = {"bfloat16": 989e12, "float32": 495e12}
SECONDS_PER_LAUNCH = 3e-6  # Of a small kernel; 2 to 5 us are usual.
SMALL = 1_000_000
ALL_REDUCE = "all-reduce-start"

# Operations of a compiled program that start nothing on the device.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("copy-done", "async-done", "all-reduce-done", "iota"),
}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z\-]+)\((.*)$")
_SHAPE = re.compile(r"\b(pred|bf16|[suf]\d+)\[([\d,]*)\]")


class Launch(NamedTuple):
    """One kernel or library call: its operation, the target of a custom call, the bytes moved."""

    operation: str
    target: str
    moved: int


class Instruction(NamedTuple):
    """A line of a computation: the result's type as text, the operation, the text after it."""

    shape: str
    operation: str
    rest: str


def computations(hlo: str) -> dict[str, dict[str, Instruction]]:
    """Parses XLA's text of a compiled program: the instructions of each computation, by name."""
    found: dict[str, dict[str, Instruction]] = {}
    current: dict[str, Instruction] = {}
    for line in hlo.splitlines():
        if begin := _COMPUTATION.match(line):
            current = found[begin[1]] = {}
        elif instruction := _INSTRUCTION.match(line):
            current[instruction[1]] = Instruction(*instruction.groups()[1:])
    return found


def size_of(shape: str, but: str = "") -> int:
    """Returns the bytes of an array or a tuple of arrays; does not count arrays of type `but`.

    Example:
        >>> size_of("(f32[2,3]{1,0}, u8[100]{0})"), size_of("(f32[2,3]{1,0}, u8[100]{0})", but="u8")
        (124, 24)
    """
    total = 0
    for kind, sides in _SHAPE.findall(shape):
        if kind != but:
            bits = 8 if kind == "pred" else int(re.sub(r"\D+", "", kind))
            total += bits // 8 * math.prod(int(side) for side in sides.split(",") if side)
    return total


def launches(found: dict[str, dict[str, Instruction]], name: str) -> Iterator[Launch]:
    """Yields the launches of a computation, and those of the computations that it calls."""
    instructions = found[name]
    for shape, operation, rest in instructions.values():
        called = re.search(r"(?:to_apply|calls)=%?([\w.\-]+)", rest)
        if operation in FREE:
            continue
        if operation in ("call", "async-start") and called:
            yield from launches(found, called[1])
            continue
        operands = re.findall(r"%([\w.\-]+)", rest.partition("),")[0])
        # cuDNN's workspace, the second result of its calls, is not counted.
        moved = size_of(shape, but="u8" if operation == "custom-call" else "")
        moved += sum(size_of(instructions[one].shape) for one in operands if one in instructions)
        target = re.search(r'custom_call_target="([^"]+)"', rest)
        yield Launch(operation, target[1] if target else "", moved)


def loop_body(found: dict[str, dict[str, Instruction]]) -> str:
    """Returns the name of the largest loop body, which is the training step."""
    bodies = {
        match[1]
        for instructions in found.values()
        for instruction in instructions.values()
        if instruction.operation == "while"
        and (match := re.search(r"body=%?([\w.\-]+)", instruction.rest))
    }
    return max(bodies, key=lambda name: len(found[name]))


def pmap_for(devices: Sequence[Any]) -> Callable[..., Any]:
    """Returns a `jax.pmap` for devices that are only a compilation target, unlike JAX's own."""
    import jax
    from jax.sharding import Mesh, PartitionSpec

    def pmap(
        run: Callable[..., Any],
        axis: str,
        *,
        in_axes: Sequence[int | None],
        out_axes: Any,
        donate_argnums: Any = (),
    ) -> Any:
        def on_device(*arguments: Any) -> Any:
            parts = zip(arguments, in_axes, strict=True)
            return run(*(x if a is None else jax.tree.map(lambda x: x[0], x) for x, a in parts))

        specs = [PartitionSpec() if a is None else PartitionSpec(axis) for a in in_axes]
        mesh = Mesh(devices, (axis,))
        mapped = jax.shard_map(
            on_device, mesh=mesh, in_specs=tuple(specs), out_specs=PartitionSpec(), check_vma=False
        )
        return jax.jit(mapped, donate_argnums=donate_argnums)

    return pmap


def compile_step(
    devices: Sequence[Any], network: str, variant: str, batch: int, steps: int
) -> tuple[Any, float]:
    """Compiles a dispatch of training steps, as `set_up` builds it on GPUs.

    Returns:
        The compiled program, and the FLOPs of a step of all devices: three times those that XLA
        counts in the network's logits.
    """
    import jax
    import numpy as np

    from configs import cifar10, imagenet
    from flexpool_jax import configuration
    from flexpool_jax.data import Dataset, Split
    from flexpool_jax.insight.inspection import count_flops
    from flexpool_jax.training.setup import set_up
    from flexpool_jax.training.steps import DeviceSplit

    get_config, stored, side, classes = {
        "resnet20": (cifar10.get_config, 32, 32, 10),
        "resnet50": (imagenet.get_config, 256, 224, 1000),
    }[network]
    # Only two batches of images, since a gather counts as if it read all images.
    images = np.zeros((2 * batch, stored, stored, 3), np.uint8)
    labels = np.zeros(2 * batch, np.int32)
    train, mean = Split(images, labels), np.full(3, 0.5, np.float32)
    test = Split(np.zeros((1, side, side, 3), np.uint8), labels[:1])
    names = tuple(str(number) for number in range(classes))
    config = get_config(f"{variant},batch_size={batch}")
    dataset = Dataset(config.dataset.name, train, test, names, mean, mean)
    with (
        mock.patch.object(jax, "default_backend", return_value="gpu"),
        mock.patch.object(jax, "pmap", pmap_for(devices)),
    ):
        setup = set_up(configuration.resolve(config), dataset)
        part = jax.ShapeDtypeStruct((len(devices), steps, batch // len(devices)), np.int32)
        key = jax.eval_shape(lambda: jax.random.key(0))
        data = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (images, labels))
        lowered = setup.train_steps.lower(setup.abstract_state, DeviceSplit(*data), part, key)
    forward = count_flops(setup.model, dataset.image_shape)
    assert forward is not None
    return lowered.compile(), 3 * batch * forward


def milliseconds(step: Sequence[Launch]) -> float:
    """Returns the estimated time of launches that follow each other.

    Example:
        >>> round(milliseconds([Launch("fusion", "", 33_500_000), Launch("copy", "", 8)]), 6)
        0.013
    """
    return 1e3 * sum(max(one.moved / BYTES_PER_SECOND, SECONDS_PER_LAUNCH) for one in step)


def row(name: str, compiled: Any, flops: float, dtype: str) -> list[str]:
    """Returns a row of the table; `flops` are those of one device."""
    found = computations(compiled.as_text())
    step = list(launches(found, loop_body(found)))
    reduced = [launch for launch in step if launch.operation == ALL_REDUCE]
    moved = sum(launch.moved for launch in step)
    return [
        name,
        str(len(step)),
        str(sum(launch.moved < SMALL for launch in step)),
        str(sum("cudnn" in launch.target for launch in step)),
        f"{moved / 1e9:.2f}",
        f"{compiled.memory_analysis().temp_size_in_bytes / 1e9:.2f}",
        f"{1e3 * moved / BYTES_PER_SECOND:.1f}",
        f"{1e3 * flops / FLOPS_PER_SECOND[dtype]:.2f}",
        f"{milliseconds([launch for launch in step if launch.operation != ALL_REDUCE]):.1f}",
        str(len(reduced)),
        # The operands alone; the results are as large.
        f"{sum(launch.moved for launch in reduced) / 2e6:.2f}",
    ]


def main() -> None:
    """Compiles and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuda", required=True, type=Path, help="where the packages are installed")
    parser.add_argument("--network", choices=("resnet20", "resnet50"), default="resnet20")
    parser.add_argument("--devices", nargs="+", type=int, default=[1], help="that share a batch")
    parser.add_argument("--batch", type=int, default=1000, help="of all devices")
    parser.add_argument("--steps", type=int, default=50, help="of a dispatch")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--variant", default="flexpool,reg,dropout,sac")
    parser.add_argument("--text", type=Path, help="a folder for XLA's text of each program")
    arguments = parser.parse_args()
    if any(count < 1 or arguments.batch % count for count in arguments.devices):
        parser.error("--batch must be a multiple of each number of --devices")
    nvcc = arguments.cuda.resolve() / "nvidia" / "cuda_nvcc"
    sys.path.insert(0, str(arguments.cuda.resolve()))
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["PATH"] = f"{nvcc / 'bin'}:{os.environ['PATH']}"
    flags = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={nvcc}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".lstrip()

    from jax.experimental import topologies

    rows = []
    for dtype, count in itertools.product(arguments.dtype, arguments.devices):
        devices = topologies.get_topology_desc(
            platform="cuda",
            topology_name="",
            topology=f"1x1x{count}",
            target_config=TARGET.read_text(),
        ).devices
        variant = f"{arguments.variant},dtype={dtype}"
        compiled, flops = compile_step(
            devices, arguments.network, variant, arguments.batch, arguments.steps
        )
        if arguments.text:
            (arguments.text / f"{dtype}_{count}.hlo").write_text(compiled.as_text())
        rows.append(row(f"{dtype}, {count}", compiled, flops / count, dtype))
    report.print_table(
        f"A training step of {arguments.network}, {arguments.variant}, batch {arguments.batch}, "
        "for H100s",
        [
            *("type, devices", "launches", "small", "convolutions", "bytes, GB", "scratch, GB"),
            *("ms by bytes", "ms by FLOPs", "ms with launches", "all-reduces", "MB"),
        ],
        rows,
    )


if __name__ == "__main__":
    main()
