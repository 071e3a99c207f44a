"""Claim: what XLA makes of a training step for an H100, and the least time that it can take there.

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
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from benchmarks import limits, report

TARGET = Path(__file__).with_name("h100.txtpb")
BYTES_PER_SECOND = 3.35e12
FLOPS_PER_SECOND = {"bfloat16": 989e12, "float32": 495e12}
SMALL = 1_000_000

# Operations of a compiled program that start nothing on the device.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("copy-done", "async-done", "iota"),
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


def pmap_for(device: Any) -> Callable[..., Any]:
    """Returns a `jax.pmap` for a device that is only a compilation target, unlike JAX's own."""
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
        mesh = Mesh([device], (axis,))
        mapped = jax.shard_map(
            on_device, mesh=mesh, in_specs=tuple(specs), out_specs=PartitionSpec(), check_vma=False
        )
        return jax.jit(mapped, donate_argnums=donate_argnums)

    return pmap


def compile_step(device: Any, variant: str, batch: int, steps: int) -> Any:
    """Compiles a dispatch of training steps of ResNet20, as `set_up` builds it on a GPU."""
    import jax
    import numpy as np

    from configs import cifar10
    from flexpool_jax import configuration
    from flexpool_jax.data import Dataset, Split
    from flexpool_jax.training.setup import set_up
    from flexpool_jax.training.steps import DeviceSplit

    # Only two batches of images, since a gather counts as if it read all images.
    images, labels = np.zeros((2 * batch, 32, 32, 3), np.uint8), np.zeros(2 * batch, np.int32)
    split, mean = Split(images, labels), np.full(3, 0.5, np.float32)
    dataset = Dataset("cifar10", split, split, tuple("0123456789"), mean, mean)
    config = cifar10.get_config(f"{variant},batch_size={batch}")
    with (
        mock.patch.object(jax, "default_backend", return_value="gpu"),
        mock.patch.object(jax, "pmap", pmap_for(device)),
    ):
        setup = set_up(configuration.resolve(config), dataset)
        part = jax.ShapeDtypeStruct((1, steps, batch), np.int32)
        key = jax.eval_shape(lambda: jax.random.key(0))
        data = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (images, labels))
        lowered = setup.train_steps.lower(setup.abstract_state, DeviceSplit(*data), part, key)
    return lowered.compile()


def row(name: str, compiled: Any, batch: int, dtype: str) -> list[str]:
    """Returns a row of the table."""
    found = computations(compiled.as_text())
    step = list(launches(found, loop_body(found)))
    moved = sum(launch.moved for launch in step)
    flops = batch * limits.training_flops()
    return [
        name,
        str(len(step)),
        str(sum(launch.moved < SMALL for launch in step)),
        str(sum("cudnn" in launch.target for launch in step)),
        f"{moved / 1e9:.2f}",
        f"{compiled.memory_analysis().temp_size_in_bytes / 1e9:.2f}",
        f"{1e3 * moved / BYTES_PER_SECOND:.1f}",
        f"{1e3 * flops / FLOPS_PER_SECOND[dtype]:.2f}",
    ]


def main() -> None:
    """Compiles and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cuda", required=True, type=Path, help="where the packages are installed")
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=50, help="of a dispatch")
    parser.add_argument("--dtype", nargs="+", default=["bfloat16", "float32"])
    parser.add_argument("--variant", default="flexpool,reg,dropout,sac")
    parser.add_argument("--text", type=Path, help="a folder for XLA's text of each program")
    arguments = parser.parse_args()
    nvcc = arguments.cuda.resolve() / "nvidia" / "cuda_nvcc"
    sys.path.insert(0, str(arguments.cuda.resolve()))
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["PATH"] = f"{nvcc / 'bin'}:{os.environ['PATH']}"
    flags = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={nvcc}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".lstrip()

    from jax.experimental import topologies

    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", topology="1x1x1", target_config=TARGET.read_text()
    )
    rows = []
    for dtype in arguments.dtype:
        variant = f"{arguments.variant},dtype={dtype}"
        compiled = compile_step(topology.devices[0], variant, arguments.batch, arguments.steps)
        if arguments.text:
            (arguments.text / f"{dtype}.hlo").write_text(compiled.as_text())
        rows.append(row(dtype, compiled, arguments.batch, dtype))
    report.print_table(
        f"A training step of ResNet20, {arguments.variant}, batch {arguments.batch}, for an H100",
        [
            *("", "launches", "small", "convolutions", "bytes, GB", "scratch, GB"),
            *("ms by bytes", "ms by FLOPs"),
        ],
        rows,
    )


if __name__ == "__main__":
    main()
