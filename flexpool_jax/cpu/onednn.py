"""oneDNN's convolution for XLA's CPU backend, if oneDNN's library is installed.

On a CPU, XLA computes convolutions with Eigen, which copies image patches into a matrix. oneDNN's
direct convolution (Georganas et al. 2018, arXiv 1808.05567) does not copy; PyTorch uses oneDNN too.
The package ``onednn-cpu-gomp`` holds the library. This module binds the functions of oneDNN's C API
that a convolution needs, and registers each convolution with XLA as a custom call (`jax.ffi`).

The custom calls are machine code. A Python callback needs the GIL; at exit the GIL's holder waits
for the callback, which deadlocks. So the functions that XLA calls are written in LLVM's
intermediate representation, in ``onednn.ll`` and ``xla_ffi_0.1.ll``, and compiled by ``llvmlite``.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from ctypes import byref, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from flexpool_jax.cpu.process import PACKAGES

Array = jax.Array
Form = Literal["forward", "input_gradient", "kernel_gradient"]

# The version of XLA's FFI whose structs ``xla_ffi_0.1.ll`` holds. Later minor versions only add
# fields: 0.3 (jaxlib 0.10 and 0.11) and 0.5 (jaxlib 0.12) have all fields of 0.1 at the same place.
FFI_MAJOR, FFI_MINOR = 0, 1


class Geometry(NamedTuple):
    """The shapes of a convolution; images are NHWC, kernels HWIO.

    Attributes:
        x: ``(B, H, W, C)``.
        kernel: ``(kh, kw, C, features)``.
        stride: stride in both directions.
        padding: ``((top, bottom), (left, right))``, not negative.
    """

    x: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int
    padding: tuple[tuple[int, int], ...]

    @property
    def y(self) -> tuple[int, ...]:
        """The shape of the result: ``(B, H', W', features)``."""
        sizes = zip(self.x[1:3], self.kernel[:2], self.padding, strict=True)
        height, width = ((n + sum(pad) - k) // self.stride + 1 for n, k, pad in sizes)
        return (self.x[0], height, width, self.kernel[3])


# A convolution is linear in its input and in its kernel, and so has three forms: the convolution
# itself, the gradient with respect to its input, and the gradient with respect to its kernel. The
# gradients of each form are the other two forms, so derivatives of every order exist.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """The convolution ``[B, H', W', features]`` of x and kernel, all float32.

    The result equals that of `jax.lax.conv_general_dilated` up to rounding. It can only be called
    if `library` does not return None.
    """
    return _call("forward", x, kernel, geometry)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def input_gradient(dy: Array, kernel: Array, geometry: Geometry) -> Array:
    """The gradient of `conv` for x, ``[B, H, W, C]``; dy is the gradient for its result."""
    return _call("input_gradient", dy, kernel, geometry)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def kernel_gradient(x: Array, dy: Array, geometry: Geometry) -> Array:
    """The gradient of `conv` for the kernel; dy is the gradient for its result."""
    return _call("kernel_gradient", x, dy, geometry)


conv.defvjp(
    lambda x, kernel, geometry: (conv(x, kernel, geometry), (x, kernel)),
    lambda geometry, saved, dy: (
        input_gradient(dy, saved[1], geometry),
        kernel_gradient(saved[0], dy, geometry),
    ),
)
input_gradient.defvjp(
    lambda dy, kernel, geometry: (input_gradient(dy, kernel, geometry), (dy, kernel)),
    lambda geometry, saved, x: (
        conv(x, saved[1], geometry),
        kernel_gradient(x, saved[0], geometry),
    ),
)
kernel_gradient.defvjp(
    lambda x, dy, geometry: (kernel_gradient(x, dy, geometry), (x, dy)),
    lambda geometry, saved, kernel: (
        input_gradient(saved[1], kernel, geometry),
        conv(saved[0], kernel, geometry),
    ),
)


def _call(form: Form, a: Array, b: Array, geometry: Geometry) -> Array:
    loaded = library()
    assert loaded is not None
    shape = {"forward": geometry.y, "input_gradient": geometry.x}.get(form, geometry.kernel)
    call = jax.ffi.ffi_call(
        loaded.register(form, geometry),
        jax.ShapeDtypeStruct(shape, jnp.float32),
        vmap_method="sequential",
    )
    return call(a, b)


_loading = threading.Lock()


def library() -> Library | None:
    """Returns oneDNN, or None if it cannot be used; `describe` returns the reason."""
    with _loading:
        loaded = _load()
    return loaded if isinstance(loaded, Library) else None


def describe() -> str:
    """Names the library that computes float32 convolutions: "oneDNN 3.2.0", or "XLA" and why."""
    loaded = library()
    return f"oneDNN {loaded.version}" if loaded else f"XLA ({_load()})"


@functools.cache
def _load() -> Library | str:
    """Returns oneDNN, or the reason why it cannot be used."""
    try:
        _check_ffi_version()
        files = importlib.metadata.files(PACKAGES[0]) or []
        path = next(file.locate() for file in files if file.name == "libdnnl.so.3")
        return Library(os.path.realpath(path))
    except StopIteration:
        return f"not oneDNN: {PACKAGES[0]} holds no libdnnl.so.3"
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        # A package that is not installed is an ImportError.
        return f"not oneDNN: {error}"


def _check_ffi_version() -> None:
    """Raises RuntimeError if this jaxlib's header states an unsupported version of XLA's FFI."""
    header = Path(jax.ffi.include_dir(), "xla/ffi/api/c_api.h").read_text(encoding="utf-8")
    version = [int(n) for n in re.findall(r"#define XLA_FFI_API_M(?:AJ|IN)OR (\d+)", header)]
    if len(version) != 2 or version[0] != FFI_MAJOR or version[1] < FFI_MINOR:
        raise RuntimeError(
            f"version {'.'.join(map(str, version)) or 'unknown'} of XLA's FFI is not supported, "
            f"only {FFI_MAJOR}.{FFI_MINOR} and its later minor versions"
        )


class Library:
    """The part of oneDNN's C API that convolutions need, and the convolutions registered so far.

    All objects that it creates live as long as the process, as XLA's registrations do.

    Args:
        path: path of ``libdnnl.so.3``.

    Attributes:
        version: version of oneDNN, such as "3.2.0".

    Raises:
        ImportError: llvmlite is not installed.
        OSError: the library, or another library that it needs, cannot be loaded.
        AttributeError: the file is another library, without oneDNN's functions.
        RuntimeError: oneDNN, LLVM or a custom call of XLA does not work on this machine.
    """

    def __init__(self, path: str) -> None:
        import llvmlite.binding as llvm

        with _passive_threads():
            self._functions = ctypes.CDLL(path)
        self._functions.dnnl_primitive_desc_query_md.restype = c_void_p
        self._functions.dnnl_version.restype = ctypes.POINTER(c_int * 3)
        self.version = ".".join(map(str, self._functions.dnnl_version().contents))
        self._device = self._made("engine_create", _CPU, c_size_t(0))
        self._stream = self._made("stream_create", self._device, _IN_ORDER)
        # The default scratch memory belongs to the thread that creates a primitive, but another
        # thread executes the primitive.
        self._attributes = self._made("primitive_attr_create")
        self._check(
            "primitive_attr_set_scratchpad_mode",
            self._functions.dnnl_primitive_attr_set_scratchpad_mode(self._attributes, _BY_USER),
        )
        self._llvm = llvm
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        for name in ("dnnl_memory_set_data_handle", "dnnl_primitive_execute"):
            llvm.add_symbol(name, ctypes.cast(getattr(self._functions, name), c_void_p).value)
        machine = llvm.Target.from_default_triple().create_target_machine()
        self._compiler = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        sources = (f"xla_ffi_{FFI_MAJOR}.{FFI_MINOR}.ll", "onednn.ll")
        program = "".join(Path(__file__).with_name(name).read_text("utf-8") for name in sources)
        start = ctypes.CFUNCTYPE(c_int)(self._compiled(program, "start"))
        self._registering = threading.Lock()
        self._names: dict[tuple[Form, Geometry], str] = {}
        self._kept: list[Any] = []
        # XLA tests a handler when it is registered, and refuses a handler that it cannot call. So
        # one is registered here. Before a backend exists, JAX would only queue the registration.
        jax.local_devices(backend="cpu")
        self.register("forward", Geometry((1, 1, 1, 1), (1, 1, 1, 1), 1, ((0, 0), (0, 0))))
        if start():
            raise RuntimeError("no thread can be started")

    def register(self, form: Form, geometry: Geometry) -> str:
        """Returns the name under which XLA calls a convolution; registers it on first use.

        Raises:
            RuntimeError: oneDNN cannot compute this convolution, or XLA refuses the handler.
        """
        with self._registering:
            name = self._names.get((form, geometry))
            if name is None:
                shapes = (geometry.x, geometry.kernel, (geometry.stride,), *geometry.padding)
                # `jax.export` lists the names of custom calls that it refuses, so the name tells
                # the user what to do.
                sizes = ".".join("x".join(map(str, shape)) for shape in shapes)
                name = f"onednn.{form}.{sizes}.unless_in_cpu_kernels(False)"
                handler = self._handler(*self._plan(form, geometry))
                jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")
                self._names[form, geometry] = name
            return name

    def _made(self, name: str, *arguments: Any) -> c_void_p:
        """Calls a function of the C API; returns the object that it creates."""
        made = c_void_p()
        self._check(name, getattr(self._functions, f"dnnl_{name}")(byref(made), *arguments))
        return made

    def _check(self, name: str, status: int) -> None:
        if status:
            raise RuntimeError(f"oneDNN's {name} failed with status {status}")

    def _layout(self, sizes: Sequence[int], strides: Sequence[int]) -> c_void_p:
        """Creates oneDNN's description of a four-dimensional array in memory."""
        shape = (4, _int64(sizes), _FLOAT32)
        return self._made("memory_desc_create_with_strides", *shape, _int64(strides))

    def _plan(self, form: Form, geometry: Geometry) -> tuple[_Memories, Sequence[_Step]]:
        """Creates the memories of the operands and the result, and the two steps to execute."""

        def images(shape: Sequence[int]) -> c_void_p:
            n, h, w, c = shape
            return self._layout((n, c, h, w), (h * w * c, 1, w * c, c))

        # oneDNN names the axes in the order NCHW and OIHW, whatever their order in memory is.
        kh, kw, channels, features = geometry.kernel
        sizes = (features, channels, kh, kw)
        strides = (1, features, kw * channels * features, channels * features)
        x, y, kernel = images(geometry.x), images(geometry.y), self._layout(sizes, strides)
        # oneDNN chooses the kernel's layout.
        any_kernel = self._made(
            "memory_desc_create_with_tag", 4, _int64(sizes), _FLOAT32, _ANY_LAYOUT
        )
        window = (
            _int64((geometry.stride,) * 2),
            _int64((0, 0)),  # dilations; oneDNN counts from 0
            _int64([low for low, _ in geometry.padding]),
            _int64([high for _, high in geometry.padding]),
        )
        create = "convolution_{}_primitive_desc_create"
        chosen = described = self._made(
            create.format("forward"), self._device, _FORWARD_TRAINING, _DIRECT,
            x, any_kernel, None, y, *window, self._attributes,
        )  # fmt: skip
        if form == "input_gradient":
            chosen = self._made(
                create.format("backward_data"), self._device, _DIRECT,
                x, any_kernel, y, *window, described, self._attributes,
            )  # fmt: skip
        elif form == "kernel_gradient":
            chosen = self._made(
                create.format("backward_weights"), self._device, _DIRECT,
                x, any_kernel, None, y, *window, described, self._attributes,
            )  # fmt: skip
        query = _D_WEIGHTS_LAYOUT if form == "kernel_gradient" else _WEIGHTS_LAYOUT
        blocked = self._layout_of(chosen, query)

        def memory(layout: c_void_p, where: c_void_p | None = None) -> c_void_p:
            return self._made("memory_create", layout, self._device, where)

        def step(description: c_void_p, roles: dict[int, c_void_p]) -> _Step:
            scratch = memory(self._layout_of(description, _SCRATCH_LAYOUT), _ALLOCATE)
            primitive = self._made("primitive_create", description)
            return primitive, {**roles, _SCRATCH: scratch}

        def reorder(source: c_void_p, target: c_void_p, roles: dict[int, c_void_p]) -> _Step:
            layouts = (source, self._device, target, self._device, self._attributes)
            return step(self._made("reorder_primitive_desc_create", *layouts), roles)

        x_, y_, kernel_, blocked_ = memory(x), memory(y), memory(kernel), memory(blocked, _ALLOCATE)
        if form == "kernel_gradient":
            return (x_, y_, kernel_), [
                step(chosen, {_SOURCE: x_, _D_TARGET: y_, _D_WEIGHTS: blocked_}),
                reorder(blocked, kernel, {_SOURCE: blocked_, _TARGET: kernel_}),
            ]
        block = reorder(kernel, blocked, {_SOURCE: kernel_, _TARGET: blocked_})
        if form == "input_gradient":
            return (y_, kernel_, x_), [
                block,
                step(chosen, {_D_TARGET: y_, _WEIGHTS: blocked_, _D_SOURCE: x_}),
            ]
        return (x_, kernel_, y_), [
            block,
            step(chosen, {_SOURCE: x_, _WEIGHTS: blocked_, _TARGET: y_}),
        ]

    def _layout_of(self, description: c_void_p, what: int) -> c_void_p:
        return c_void_p(self._functions.dnnl_primitive_desc_query_md(description, what, 0))

    def _handler(self, memories: _Memories, steps: Sequence[_Step]) -> Any:
        """Compiles the function that XLA calls with an ``XLA_FFI_CallFrame*``."""
        plan = _PlanStruct(self._stream)
        plan.memories[:] = [memory.value for memory in memories]
        for struct, (primitive, roles) in zip(plan.steps, steps, strict=True):
            arguments = (_Argument * len(roles))(*(_Argument(*item) for item in roles.items()))
            struct.primitive, struct.count = primitive, len(roles)
            struct.arguments = ctypes.cast(arguments, c_void_p)
            self._kept.append(arguments)
        self._kept.append(plan)
        name = f"handler{len(self._kept)}"
        program = f"""
            declare ptr @convolve(ptr, ptr)
            define ptr @{name}(ptr %frame) {{
              %error = call ptr @convolve(
                  ptr %frame, ptr inttoptr (i64 {ctypes.addressof(plan)} to ptr))
              ret ptr %error
            }}"""
        return ctypes.CFUNCTYPE(c_void_p, c_void_p)(self._compiled(program, name))

    def _compiled(self, program: str, name: str) -> int:
        """Compiles a program in LLVM's IR; returns the address of one of its functions."""
        self._compiler.add_module(self._llvm.parse_assembly(program))
        self._compiler.finalize_object()
        return self._compiler.get_function_address(name)


def _int64(values: Sequence[int]) -> Any:
    return (c_int64 * len(values))(*values)


@contextlib.contextmanager
def _passive_threads() -> Iterator[None]:
    """Lets the idle threads of an OpenMP library sleep at once, if it is loaded in this context.

    Idle threads would otherwise spin for milliseconds after each call, on the cores that XLA's
    threads need. The library reads ``OMP_WAIT_POLICY`` when it is loaded.
    """
    name = "OMP_WAIT_POLICY"
    given = name in os.environ
    os.environ.setdefault(name, "passive")
    try:
        yield
    finally:
        if not given:
            os.environ.pop(name, None)


class _Argument(ctypes.Structure):
    """The struct ``dnnl_exec_arg_t`` of oneDNN's C API."""

    _fields_ = (("role", c_int), ("memory", c_void_p))


class _StepStruct(ctypes.Structure):
    """The struct ``%Step`` of onednn.ll."""

    _fields_ = (("primitive", c_void_p), ("count", c_int), ("arguments", c_void_p))


class _PlanStruct(ctypes.Structure):
    """The struct ``%Plan`` of onednn.ll."""

    _fields_ = (("stream", c_void_p), ("memories", c_void_p * 3), ("steps", _StepStruct * 2))


_Memories = tuple[c_void_p, c_void_p, c_void_p]
_Step = tuple[c_void_p, Mapping[int, c_void_p]]

# Constants of dnnl_types.h and dnnl_common_types.h, version 3.
_CPU, _IN_ORDER, _FLOAT32, _ANY_LAYOUT, _DIRECT, _FORWARD_TRAINING = 1, 1, 3, 1, 1, 64
_SOURCE, _TARGET, _WEIGHTS = 1, 17, 33
_D_SOURCE, _D_TARGET, _D_WEIGHTS = 129, 145, 161
_BY_USER, _SCRATCH = 1, 80
_WEIGHTS_LAYOUT, _D_WEIGHTS_LAYOUT, _SCRATCH_LAYOUT = 131, 132, 136
_ALLOCATE = c_void_p(-1)
