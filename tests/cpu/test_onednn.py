"""oneDNN's convolution against lax's, and XLA's calls of it."""

import importlib.metadata
import os
import platform
import subprocess
import sys
import textwrap
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flexpool_jax import cpu
from flexpool_jax.cpu import onednn, process
from flexpool_jax.cpu.convolution import conv as cpu_conv

SUPPORTED = sys.platform == "linux" and platform.machine() == "x86_64"
needs_onednn = pytest.mark.skipif(not SUPPORTED, reason="PyPI has oneDNN for Linux on x86-64 only")

# Every convolution of ResNet20, and others that differ in something: side, channels in, channels
# out, kernel, stride, padding.
SHAPES = [
    (32, 3, 16, 3, 1, (1, 1)),
    (32, 16, 16, 3, 1, (1, 1)),
    (32, 16, 32, 3, 2, (1, 1)),
    (16, 32, 32, 3, 1, (1, 1)),
    (16, 32, 64, 3, 2, (1, 1)),
    (8, 64, 64, 3, 1, (1, 1)),
    (9, 8, 16, 1, 2, (0, 0)),
    (15, 3, 8, 7, 2, (3, 3)),
    (7, 5, 3, 3, 1, (0, 2)),
    (6, 4, 4, 2, 3, (3, 0)),
]


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def lax_conv(stride, padding):
    def conv(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    return conv


def results(conv, x, kernel, dy):
    """A convolution and both its gradients, given the one to its result."""
    y, transpose = jax.vjp(conv, x, kernel)
    return y, *transpose(dy)


@needs_onednn
def test_it_is_there():
    assert cpu.describe().startswith("oneDNN 3.")


@needs_onednn
@pytest.mark.parametrize(
    ("batch", "shape"),
    [
        *((7, shape) for shape in SHAPES),
        *((batch, shape) for batch in (1, 53) for shape in (SHAPES[1], SHAPES[4])),
    ],
)
def test_convolution_and_both_gradients_equal_laxs(batch, shape):
    side, channels, features, size, stride, margins = shape
    x, kernel = random(batch, side, side, channels), random(size, size, channels, features, seed=1)
    padding = (margins, margins)
    dy = random(*jax.eval_shape(lax_conv(stride, padding), x, kernel).shape, seed=2)
    got = results(jax.jit(lambda x, k: cpu_conv(x, k, stride, padding)), x, kernel, dy)
    with jax.enable_x64(True):
        arguments = [a.astype(jnp.float64) for a in (x, kernel, dy)]
        exact = results(lax_conv(stride, padding), *arguments)
        sums_of_magnitudes = results(lax_conv(stride, padding), *map(jnp.abs, arguments))
        for a, b, magnitude in zip(exact, got, sums_of_magnitudes, strict=True):
            assert b.dtype == jnp.float32
            # lax's own float32 convolutions are up to 2.7 roundings off as well.
            assert jnp.all(jnp.abs(b - a) <= 4 * jnp.finfo(jnp.float32).eps * magnitude)


@needs_onednn
def test_programs_call_onednn_and_nothing_else():
    def loss(x, kernel):
        return jnp.sum(cpu_conv(x, kernel, 1, ((1, 1), (1, 1))) ** 2)

    lowered = (
        jax.jit(jax.grad(loss, (0, 1))).lower(random(2, 4, 4, 3), random(3, 3, 3, 5)).as_text()
    )
    assert "stablehlo.convolution" not in lowered
    for form in ("forward", "input_gradient", "kernel_gradient"):
        assert lowered.count(f"onednn.{form}.2x4x4x3.3x3x3x5.1.1x1.1x1.") == 1


@needs_onednn
def test_gradients_of_gradients_equal_laxs():
    x, kernel, direction = (
        random(2, 5, 5, 3),
        random(3, 3, 3, 4, seed=1),
        random(2, 5, 5, 3, seed=2),
    )

    def second(conv):
        def slope(x, kernel):
            gradient = jax.grad(lambda x, k: jnp.sum(jnp.sin(conv(x, k))), (0, 1))(x, kernel)
            return jnp.sum(gradient[0] * direction) + jnp.sum(gradient[1] ** 2)

        return jax.jit(jax.grad(slope, (0, 1)))(x, kernel)

    padding = ((1, 1), (1, 1))
    for a, b in zip(
        second(lax_conv(1, padding)),
        second(lambda x, k: cpu_conv(x, k, 1, padding)),
        strict=True,
    ):
        np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-3)


@needs_onednn
def test_vmap_over_images_and_over_kernels():
    x, kernels = random(3, 2, 6, 6, 4), random(3, 3, 3, 4, 5, seed=1)
    padding = ((1, 1), (1, 1))

    def conv(x, kernel):
        return cpu_conv(x, kernel, 1, padding)

    for axes in [(0, None), (None, 0), (0, 0)]:
        arguments = [
            a[0] if axis is None else a for a, axis in zip((x, kernels), axes, strict=True)
        ]
        got = jax.vmap(conv, axes)(*arguments)
        expected = jax.vmap(lax_conv(1, padding), axes)(*arguments)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@needs_onednn
def test_threads_do_not_get_each_others_results():
    images = [random(4, 12, 12, 8, seed=seed) for seed in range(8)]
    kernel = random(3, 3, 8, 8, seed=9)
    conv = jax.jit(lambda x: cpu_conv(x, kernel, 1, ((1, 1), (1, 1))))
    expected = [np.asarray(conv(x)) for x in images]
    wrong = []

    def repeat(x, y):
        for _ in range(50):
            if not np.array_equal(conv(x), y):
                wrong.append(x)

    threads = [
        threading.Thread(target=repeat, args=pair) for pair in zip(images, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def run_program(program, **environment):
    """Runs a program in a process of its own; its exit status and what it wrote."""
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )
    return ended.returncode, ended.stdout, ended.stderr


@needs_onednn
def test_a_process_may_end_while_a_program_runs():
    program = """
        import jax, jax.numpy as jnp
        from flexpool_jax.cpu import convolution, onednn

        assert onednn.library()

        def convs(x, kernel):
            for _ in range(300):
                x = convolution.conv(x, kernel, 1, ((1, 1), (1, 1))) * 1e-3
            return x

        x, kernel = jnp.ones((64, 32, 32, 16)), jnp.ones((3, 3, 16, 16))
        run = jax.jit(convs).lower(x, kernel).compile()
        run(x, kernel)
        raise SystemExit(7)
    """
    assert run_program(program) == (7, "", "")


@needs_onednn
def test_any_thread_may_call_what_another_has_traced_and_all_share_one_team():
    # oneDNN computes these by matrix products, and needs scratch memory for them.
    program = """
        import threading
        from pathlib import Path

        import jax, jax.numpy as jnp
        from flexpool_jax.cpu import convolution

        x, kernel = jnp.ones((2, 9, 9, 130)), jnp.ones((3, 3, 130, 7))
        loss = lambda x, k: convolution.conv(x, k, 3, ((4, 4), (4, 4))).sum()
        run = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).compile()
        computed, counted = threading.Barrier(10), threading.Event()

        def compute():
            jax.block_until_ready(run(x, kernel))
            computed.wait()
            counted.wait()

        threads = [threading.Thread(target=compute) for _ in range(9)]
        for thread in threads:
            thread.start()
        computed.wait()
        # Python's, a few of XLA's, and one team of oneDNN's; a team for each would be 63 more.
        print(len(list(Path("/proc/self/task").iterdir())) < 60)
        counted.set()
    """
    assert run_program(program, OMP_NUM_THREADS="8") == (0, "True\n", "")


@needs_onednn
@pytest.mark.parametrize(
    ("x", "kernel"),
    [
        (jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5), jnp.bfloat16)),
        (jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 4, 5))),
        (jnp.ones((8, 8, 3)), jnp.ones((3, 3, 3, 5))),
    ],
)
def test_operands_that_do_not_belong_together_are_refused_as_by_lax(x, kernel):
    with pytest.raises((TypeError, ValueError)) as error:
        cpu_conv(x, kernel, 1, ((1, 1), (1, 1)))
    assert "conv" in str(error.value)


@needs_onednn
def test_a_failure_of_onednns_is_an_error_of_the_program(monkeypatch):
    plan = onednn.Library._plan

    def without_arguments(self, form, geometry):
        memories, steps = plan(self, form, geometry)
        return memories, [(primitive, {}) for primitive, _ in steps]

    monkeypatch.setattr(onednn.Library, "_plan", without_arguments)
    with pytest.raises(jax.errors.JaxRuntimeError, match="oneDNN could not compute a convolution"):
        # A shape that no other test has, since what is registered stays.
        cpu_conv(random(1, 11, 13, 2), random(3, 3, 2, 2), 1, ((0, 0), (0, 0)))


@needs_onednn
@pytest.mark.parametrize("missing", process.PACKAGES)
def test_without_its_packages_xla_convolves(monkeypatch, missing):
    if missing == "llvmlite":
        monkeypatch.setitem(sys.modules, "llvmlite.binding", None)
    else:

        def files(name):
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "files", files)
    check_that_xla_convolves(monkeypatch, missing)


@needs_onednn
@pytest.mark.parametrize(
    ("defines", "name"),
    [
        ("MAJOR 1\n#define XLA_FFI_API_MINOR 0", "1.0"),
        ("MAJOR 0\n#define XLA_FFI_API_MINOR 0", "0.0"),
        ("MAJOR 0", "0"),
        ("MINUTES 7", "unknown"),
    ],
)
def test_with_another_version_of_xlas_ffi_xla_convolves(monkeypatch, tmp_path, defines, name):
    write_ffi_header(monkeypatch, tmp_path, defines)
    check_that_xla_convolves(monkeypatch, f"version {name} of XLA's FFI")


@needs_onednn
def test_where_xla_refuses_the_handlers_xla_convolves():
    program = """
        from pathlib import Path

        read_text = Path.read_text

        def of_the_next_major_version(path, *arguments, **keywords):
            text = read_text(path, *arguments, **keywords)
            return text.replace("store i32 0, ptr %major_at", "store i32 1, ptr %major_at")

        Path.read_text = of_the_next_major_version
        from flexpool_jax import cpu

        print(cpu.describe())
    """
    status, output, _ = run_program(program)
    assert status == 0
    assert output.startswith("XLA (not oneDNN: ")
    assert "version" in output


def test_later_minor_versions_of_xlas_ffi_are_supported(monkeypatch, tmp_path):
    write_ffi_header(monkeypatch, tmp_path, "MAJOR 0\n#define XLA_FFI_API_MINOR 99")
    onednn._check_ffi_version()


def write_ffi_header(monkeypatch, folder, defines):
    header = folder / "xla" / "ffi" / "api" / "c_api.h"
    header.parent.mkdir(parents=True)
    header.write_text(f"#define XLA_FFI_API_{defines}\n")
    monkeypatch.setattr(jax.ffi, "include_dir", lambda: str(folder))


def check_that_xla_convolves(monkeypatch, reason):
    # As in a new process: what is loaded already stays as it is.
    monkeypatch.setattr(onednn, "_load", onednn._load.__wrapped__)
    assert onednn.library() is None
    assert reason in cpu.describe()
    x, kernel = random(2, 6, 6, 3), random(3, 3, 3, 4, seed=1)
    conv = jax.jit(lambda x, k: cpu_conv(x, k, 1, ((1, 1), (1, 1))))
    assert "stablehlo.convolution" in conv.lower(x, kernel).as_text()
    expected = lax_conv(1, ((1, 1), (1, 1)))(x, kernel)
    np.testing.assert_allclose(conv(x, kernel), expected, rtol=1e-4, atol=1e-5)
