"""oneDNN's convolution for XLA's CPU backend, where its library is installed.

XLA hands a CPU's convolutions to Eigen, which copies image patches into a matrix; oneDNN's direct
convolution (Georganas et al. 2018, arXiv 1808.05567) does not, and is what PyTorch calls too. The
package ``onednn-cpu-gomp`` holds the library. This module binds the functions of its C API that a
convolution needs, and registers each convolution with XLA as a custom call (`jax.ffi`).

A custom call has to be machine code: written in Python it would wait for Python's lock, which
whoever ends the process holds while it waits for the call. So the few instructions between
XLA and oneDNN are LLVM's intermediate representation, which ``llvmlite`` compiles.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from ctypes import byref, c_int, c_int64, c_size_t, c_void_p
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

Array = jax.Array
Form = Literal["forward", "input_gradient", "kernel_gradient"]

# What must be installed, beside JAX.
PACKAGES = ("onednn-cpu-gomp", "llvmlite")


class Geometry(NamedTuple):
    """The shapes of a convolution; images are NHWC, kernels HWIO.

    Attributes:
        x: ``(B, H, W, C)``.
        kernel: ``(kh, kw, C, features)``.
        stride: of both directions.
        padding: ``((top, bottom), (left, right))``, none of them negative.
    """

    x: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: int
    padding: tuple[tuple[int, int], ...]

    @property
    def y(self) -> tuple[int, ...]:
        """``(B, H', W', features)``."""
        sizes = zip(self.x[1:3], self.kernel[:2], self.padding, strict=True)
        height, width = ((n + sum(pad) - k) // self.stride + 1 for n, k, pad in sizes)
        return (self.x[0], height, width, self.kernel[3])


# A convolution is linear in its input and in its kernel, and so has three forms: itself, the
# gradient to its input, and the gradient to its kernel. Each form's own gradients are the two
# others, which makes them differentiable as often as one likes.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv(x: Array, kernel: Array, geometry: Geometry) -> Array:
    """The convolution ``[B, H', W', features]`` of x and kernel, all float32.

    `jax.lax.conv_general_dilated` to float32's rounding. Call it where `library` is not None.
    """
    return _call("forward", x, kernel, geometry)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def input_gradient(dy: Array, kernel: Array, geometry: Geometry) -> Array:
    """`conv`'s gradient to x ``[B, H, W, C]``, given the one to its result."""
    return _call("input_gradient", dy, kernel, geometry)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def kernel_gradient(x: Array, dy: Array, geometry: Geometry) -> Array:
    """`conv`'s gradient to the kernel ``[kh, kw, C, features]``, given the one to its result."""
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
    if loaded is None:
        raise RuntimeError(f"oneDNN's convolution needs the packages {' and '.join(PACKAGES)}")
    shape = {"forward": geometry.y, "input_gradient": geometry.x}.get(form, geometry.kernel)
    call = jax.ffi.ffi_call(
        loaded.register(form, geometry),
        jax.ShapeDtypeStruct(shape, jnp.float32),
        vmap_method="sequential",
    )
    return call(a, b)


_loading = threading.Lock()


def library() -> Library | None:
    """oneDNN, or None where one of `PACKAGES` is missing or cannot be loaded."""
    with _loading:
        loaded = _load()
    return loaded if isinstance(loaded, Library) else None


def describe() -> str:
    """Who computes float32 convolutions on this CPU: "oneDNN 3.2.0", or "XLA" and why."""
    loaded = library()
    return f"oneDNN {loaded.version}" if loaded else f"XLA ({_load()})"


@functools.cache
def _load() -> Library | str:
    """oneDNN, or why it is not there."""
    try:
        files = importlib.metadata.files(PACKAGES[0]) or []
        path = next(file.locate() for file in files if file.name == "libdnnl.so.3")
        return Library(os.path.realpath(path))
    except StopIteration:
        return f"not oneDNN: {PACKAGES[0]} holds no libdnnl.so.3"
    except (ImportError, OSError, AttributeError, RuntimeError) as error:
        # The first where a package is not installed.
        return f"not oneDNN: {error}"


class Library:
    """oneDNN's C API, as far as convolutions need it, and the convolutions registered so far.

    What it makes lives as long as the process, as XLA's registrations do.

    Args:
        path: of ``libdnnl.so.3``.

    Raises:
        ImportError: llvmlite is not installed.
        OSError: the library, or one that it needs, cannot be loaded.
        AttributeError: it is another library.
        RuntimeError: it, or LLVM, does not work on this machine.
    """

    def __init__(self, path: str) -> None:
        import llvmlite.binding as llvm

        self._llvm = llvm
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        machine = llvm.Target.from_default_triple().create_target_machine()
        self._compiler = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
        with _passive_threads():
            self._functions = ctypes.CDLL(path)
        self._functions.dnnl_primitive_desc_query_md.restype = c_void_p
        self._functions.dnnl_version.restype = ctypes.POINTER(c_int * 3)
        self._device = self._made("engine_create", _CPU, c_size_t(0))
        self._stream = self._made("stream_create", self._device, _IN_ORDER)
        # oneDNN's own scratch memory would belong to the thread that makes a primitive, and another
        # one executes it.
        self._attributes = self._made("primitive_attr_create")
        self._check(
            "primitive_attr_set_scratchpad_mode",
            self._functions.dnnl_primitive_attr_set_scratchpad_mode(self._attributes, _BY_USER),
        )
        self._libc = ctypes.CDLL(None)
        # One convolution at a time, since each takes all cores and its operands are the library's
        # state; and all in one thread, since OpenMP keeps a team of threads for each that calls it.
        self._mutex, self._wanted, self._done = ((c_int64 * 8)() for _ in range(3))
        self._task, self._status = c_void_p(), c_int()
        self._libc.sem_init(self._wanted, 0, 0)
        self._libc.sem_init(self._done, 0, 0)
        worker = self._machine_code(_WORKER, "worker")
        if self._libc.pthread_create(byref(c_void_p()), None, worker, None):
            raise RuntimeError("no thread can be started")
        self._registering = threading.Lock()
        self._names: dict[tuple[Form, Geometry], str] = {}
        self._kept: list[Any] = []

    @property
    def version(self) -> str:
        """Such as "3.2.0"."""
        return ".".join(map(str, self._functions.dnnl_version().contents))

    def register(self, form: Form, geometry: Geometry) -> str:
        """The name under which XLA calls a convolution; it is made when first asked for.

        Raises:
            RuntimeError: oneDNN does not have it.
        """
        with self._registering:
            name = self._names.get((form, geometry))
            if name is None:
                shapes = (geometry.x, geometry.kernel, (geometry.stride,), *geometry.padding)
                name = ".".join(["onednn", form, *("x".join(map(str, shape)) for shape in shapes)])
                handler = self._compile(f"handler{len(self._names)}", *self._plan(form, geometry))
                jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler), platform="cpu")
                self._names[form, geometry] = name
            return name

    def _made(self, name: str, *arguments: Any) -> c_void_p:
        """What a function of the C API makes and gives back through its first argument."""
        made = c_void_p()
        self._check(name, getattr(self._functions, f"dnnl_{name}")(byref(made), *arguments))
        return made

    def _check(self, name: str, status: int) -> None:
        if status:
            raise RuntimeError(f"oneDNN's {name} failed with status {status}")

    def _layout(self, sizes: Sequence[int], strides: Sequence[int] | None) -> c_void_p:
        """Of an array in memory; None for one that oneDNN may choose."""
        shape = (len(sizes), _int64(sizes), _FLOAT32)
        if strides is None:
            return self._made("memory_desc_create_with_tag", *shape, _ANY_LAYOUT)
        return self._made("memory_desc_create_with_strides", *shape, _int64(strides))

    def _plan(self, form: Form, geometry: Geometry) -> tuple[_Memories, Sequence[_Step]]:
        """What a convolution reads and writes, and the primitives that it consists of."""

        def images(shape: Sequence[int]) -> c_void_p:
            n, h, w, c = shape
            return self._layout((n, c, h, w), (h * w * c, 1, w * c, c))

        # oneDNN names the axes NCHW and OIHW, whatever their order in memory.
        kh, kw, channels, features = geometry.kernel
        sizes = (features, channels, kh, kw)
        strides = (1, features, kw * channels * features, channels * features)
        x, y, kernel = images(geometry.x), images(geometry.y), self._layout(sizes, strides)
        any_kernel = self._layout(sizes, None)
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

    def _compile(self, name: str, memories: _Memories, steps: Sequence[_Step]) -> Any:
        """The function of an ``XLA_FFI_CallFrame*`` that XLA calls."""
        place = _address(self._functions.dnnl_memory_set_data_handle)
        execute = _address(self._functions.dnnl_primitive_execute)
        places = [
            f"call i32 {place}(ptr {_address(memory)}, ptr %data{number})"
            for number, memory in enumerate(memories)
        ]
        executions = []
        for number, (primitive, roles) in enumerate(steps):
            arguments = (_Argument * len(roles))(*(_Argument(*item) for item in roles.items()))
            self._kept.append(arguments)
            executions.append(
                f"%status{number} = call i32 {execute}(ptr {_address(primitive)}, "
                f"ptr {_address(self._stream)}, i32 {len(roles)}, ptr {_address(arguments)})"
            )
        source = _HANDLER.replace("; PLACES", "\n  ".join(places))
        source = source.replace("; EXECUTIONS", "\n  ".join(executions))
        return self._machine_code(source.replace("@handler", f"@{name}"), name)

    def _machine_code(self, source: str, name: str) -> Any:
        """A function of a pointer that gives back one, from LLVM's intermediate representation."""
        source += _AWAIT
        for word, of in {
            "LOCK": self._libc.pthread_mutex_lock,
            "UNLOCK": self._libc.pthread_mutex_unlock,
            "WAIT": self._libc.sem_wait,
            "POST": self._libc.sem_post,
            "MUTEX": self._mutex,
            "WANTED": self._wanted,
            "DONE": self._done,
            "TASK": ctypes.pointer(self._task),
            "STATUS": ctypes.pointer(self._status),
        }.items():
            source = source.replace(f"<{word}>", _address(of))
        self._compiler.add_module(self._llvm.parse_assembly(source))
        self._compiler.finalize_object()
        return ctypes.CFUNCTYPE(c_void_p, c_void_p)(self._compiler.get_function_address(name))


def _int64(values: Sequence[int]) -> Any:
    return (c_int64 * len(values))(*values)


def _address(of: Any) -> str:
    """A constant of LLVM's: where a C function, an array, or what a c_void_p points to lies."""
    where = of if isinstance(of, c_void_p) else ctypes.cast(of, c_void_p)
    return f"inttoptr (i64 {where.value} to ptr)"


@contextlib.contextmanager
def _passive_threads() -> Iterator[None]:
    """Has an OpenMP library that is loaded inside put its idle threads to sleep at once.

    They would otherwise spin for milliseconds after each call, on the cores that XLA's own threads
    need then. The library reads the variable when it is loaded.
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
    """``dnnl_exec_arg_t``."""

    _fields_ = (("role", c_int), ("memory", c_void_p))


_Memories = tuple[c_void_p, c_void_p, c_void_p]
_Step = tuple[c_void_p, Mapping[int, c_void_p]]

# Of dnnl_types.h and dnnl_common_types.h, version 3: the ones that are used here.
_CPU, _IN_ORDER, _FLOAT32, _ANY_LAYOUT, _DIRECT, _FORWARD_TRAINING = 1, 1, 3, 1, 1, 64
_SOURCE, _TARGET, _WEIGHTS = 1, 17, 33
_D_SOURCE, _D_TARGET, _D_WEIGHTS = 129, 145, 161
_BY_USER, _SCRATCH = 1, 80
_WEIGHTS_LAYOUT, _D_WEIGHTS_LAYOUT, _SCRATCH_LAYOUT = 131, 132, 136
_ALLOCATE = c_void_p(-1)

# The structs are those of xla/ffi/api/c_api.h, which XLA keeps stable, up to the last field that
# is used. Before the first call XLA asks, by an extension of type 1, for the version of the
# interface; it is 0.1, since nothing newer is used.
_HANDLER = r"""
%Version = type { i64, ptr, i32, i32 }
%Metadata = type { i64, %Version, i32 }
%MetadataExtension = type { i64, i32, ptr, ptr }
%Api = type { i64, ptr, %Version, ptr, ptr }
%Error = type { i64, ptr, ptr, i32 }
%Buffer = type { i64, ptr, i32, ptr }
%Buffers = type { i64, ptr, i64, ptr, ptr }
%CallFrame = type { i64, ptr, ptr, ptr, i32, %Buffers, %Buffers }

@message = private constant [39 x i8] c"oneDNN could not compute a convolution\00"

define private void @handler.task() {
  ; EXECUTIONS
  %status = or i32 %status0, %status1
  store i32 %status, ptr <STATUS>
  ret void
}

define ptr @handler(ptr %frame) {
  %extension_at = getelementptr %CallFrame, ptr %frame, i32 0, i32 1
  %extension = load ptr, ptr %extension_at
  %extended = icmp ne ptr %extension, null
  br i1 %extended, label %which, label %compute

which:
  %type_at = getelementptr %MetadataExtension, ptr %extension, i32 0, i32 1
  %type = load i32, ptr %type_at
  %asked = icmp eq i32 %type, 1
  br i1 %asked, label %describe, label %compute

describe:
  %metadata_at = getelementptr %MetadataExtension, ptr %extension, i32 0, i32 3
  %metadata = load ptr, ptr %metadata_at
  %major_at = getelementptr %Metadata, ptr %metadata, i32 0, i32 1, i32 2
  store i32 0, ptr %major_at
  %minor_at = getelementptr %Metadata, ptr %metadata, i32 0, i32 1, i32 3
  store i32 1, ptr %minor_at
  ret ptr null

compute:
  %operands_at = getelementptr %CallFrame, ptr %frame, i32 0, i32 5, i32 4
  %operands = load ptr, ptr %operands_at
  %operand0 = load ptr, ptr %operands
  %data0_at = getelementptr %Buffer, ptr %operand0, i32 0, i32 3
  %data0 = load ptr, ptr %data0_at
  %operand1_at = getelementptr ptr, ptr %operands, i64 1
  %operand1 = load ptr, ptr %operand1_at
  %data1_at = getelementptr %Buffer, ptr %operand1, i32 0, i32 3
  %data1 = load ptr, ptr %data1_at
  %results_at = getelementptr %CallFrame, ptr %frame, i32 0, i32 6, i32 4
  %results = load ptr, ptr %results_at
  %result = load ptr, ptr %results
  %data2_at = getelementptr %Buffer, ptr %result, i32 0, i32 3
  %data2 = load ptr, ptr %data2_at
  call i32 <LOCK>(ptr <MUTEX>)
  ; PLACES
  store ptr @handler.task, ptr <TASK>
  call i32 <POST>(ptr <WANTED>)
  call void @await(ptr <DONE>)
  %status = load i32, ptr <STATUS>
  call i32 <UNLOCK>(ptr <MUTEX>)
  %failed = icmp ne i32 %status, 0
  br i1 %failed, label %fail, label %done

fail:
  %error = alloca %Error
  store %Error { i64 32, ptr null, ptr @message, i32 13 }, ptr %error
  %api_at = getelementptr %CallFrame, ptr %frame, i32 0, i32 2
  %api = load ptr, ptr %api_at
  %create_at = getelementptr %Api, ptr %api, i32 0, i32 4
  %create = load ptr, ptr %create_at
  %made = call ptr %create(ptr %error)
  ret ptr %made

done:
  ret ptr null
}
"""

# The thread that computes: waits to be wanted, does its task, says so.
_WORKER = """
define ptr @worker(ptr %nothing) {
  br label %work

work:
  call void @await(ptr <WANTED>)
  %task = load ptr, ptr <TASK>
  call void %task()
  call i32 <POST>(ptr <DONE>)
  br label %work
}
"""

# For both of them. A signal may interrupt waiting for a semaphore.
_AWAIT = """
define private void @await(ptr %semaphore) {
  br label %wait

wait:
  %waited = call i32 <WAIT>(ptr %semaphore)
  %interrupted = icmp ne i32 %waited, 0
  br i1 %interrupted, label %wait, label %posted

posted:
  ret void
}
"""
