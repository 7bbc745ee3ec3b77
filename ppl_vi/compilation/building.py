"""Compile a graph into a library, kept on disk for the next process."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.fx import GraphModule

from ppl_vi.compilation.divided import teach_compiler
from ppl_vi.compilation.in_place import in_place
from ppl_vi.compilation.lasting import lasting_tensors
from ppl_vi.compilation.mending import mended
from ppl_vi.errors import CompileError
from ppl_vi.stepping import adam

Compiled = Callable[[Sequence[Tensor]], list[Tensor]]
"""Called with the graph's inputs, it gives the graph's outputs in new tensors."""

_MOST_KEPT = 200
_COMPILING = threading.Lock()
_LOADED: dict[str, Compiled] = {}
_OPTIONS = {
    # Draws then come from torch's own generators, and equal those of eager steps.
    "fallback_random": True,
    # A header compiled in advance takes longer than it saves.
    "cpp_cache_precompile_headers": False,
    "aot_inductor.precompile_headers": False,
    # The processor says what it can; a try of each instruction set takes seconds.
    "cpp.vec_isa_ok": True,
    "aot_inductor.enable_line_tables": False,
}


class Builds:
    """Counts what was compiled, and for how long.

    Attributes:
        compiled: graphs that a compiler worked on.
        loaded: graphs found on disk or in memory.
        seconds: spent on both.
    """

    def __init__(self) -> None:
        self.compiled, self.loaded, self.seconds = 0, 0, 0.0

    def build(
        self, code: str, graph: Callable[[], GraphModule], inputs: Sequence[Tensor]
    ) -> Compiled:
        """The compiled graph, from memory, from disk, or else from the compiler.

        Args:
            code: tells one graph from another.
            graph: makes it, without changes in place; called where it was never compiled.
            inputs: of the shapes, types and devices that it will be called with.

        Raises:
            CompileError: there is no compiler, or it cannot compile the graph.
        """
        started = time.perf_counter()
        key = _key(code, inputs)
        device = next((t.device for t in inputs if t.device.type != "cpu"), torch.device("cpu"))
        if key in _LOADED:
            self.loaded += 1
        elif found := _found(key, device):
            _LOADED[key] = found
            self.loaded += 1
        else:
            _LOADED[key] = _load(_compile(graph, inputs, key), device)
            self.compiled += 1
        self.seconds += time.perf_counter() - started
        return _LOADED[key]


def cache_folder() -> Path:
    """Where compiled graphs are kept: ``$PPL_VI_CACHE``, or ppl_vi in the user's cache folder."""
    given = os.environ.get("PPL_VI_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(given) if given else Path(base) / "ppl_vi"


def _key(code: str, inputs: Sequence[Tensor]) -> str:
    """Names the graph, its inputs, and all that the compiled code depends on."""
    kinds = [(tuple(t.shape), t.stride(), str(t.dtype), str(t.device)) for t in inputs]
    where = torch.__version__, torch.get_num_threads(), _processor()
    device = [torch.cuda.get_device_name(t.device) for t in inputs if t.is_cuda][:1]
    dtype = torch.get_default_dtype()
    every = code, kinds, where, device, dtype, _OPTIONS, _own_code()
    return hashlib.sha256(repr(every).encode()).hexdigest()[:32]


@cache
def _own_code() -> str:
    """Names this version of what turns a program into a loop."""
    here = Path(__file__).parent
    files = sorted([*here.glob("*.py"), *here.glob("*.h"), Path(str(adam.__file__))])
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


@cache
def _processor() -> str:
    """What the processor can do: code compiled for another one may not run here."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform() + platform.node()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _kept(key: str) -> Path | None:
    folder = cache_folder() / key
    return next(folder.glob("*.so"), None) if folder.is_dir() else None


def _found(key: str, device: torch.device) -> Compiled | None:
    """The library from disk; one that does not load is thrown away."""
    library = _kept(key)
    try:
        return _load(library, device) if library else None
    except RuntimeError:
        shutil.rmtree(cache_folder() / key, ignore_errors=True)
        return None


def _load(library: Path, device: torch.device) -> Compiled:
    if device.type == "cpu":
        runner: Any = torch._C._aoti.AOTIModelContainerRunnerCpu(str(library), 1)
    else:
        runner = torch._C._aoti.AOTIModelContainerRunnerCuda(
            str(library), 1, str(device), str(library.parent)
        )
    return lambda inputs: runner.run(list(inputs))


def _compile(graph: Callable[[], GraphModule], inputs: Sequence[Tensor], key: str) -> Path:
    """Compile into a folder of its own, and move that to its place when it is whole."""
    from torch._inductor import aot_compile

    if not has_compiler():
        raise CompileError("there is no C++ compiler on this machine (install g++)")
    root = cache_folder()
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        made = Path(tempfile.mkdtemp(prefix="compiling-", dir=root))
    except OSError as error:
        raise CompileError(f"the folder for compiled steps cannot be written ({error})") from error
    try:
        with _COMPILING, _quiet(), _side_by_side(), lasting_tensors(), mended():
            teach_compiler()
            options: dict[str, Any] = {
                **_OPTIONS,
                "aot_inductor.output_path": str(made / "step.so"),
                "post_grad_custom_post_pass": in_place,
            }
            aot_compile(graph(), tuple(inputs), options=options)
        _tidy(made)
        _replace(made, root / key)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise CompileError(
            f"torch cannot compile the step ({type(error).__name__}: {lines[0]})"
        ) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    _prune(root)
    found = _kept(key)
    if found is None:
        raise CompileError("torch compiled the step, but left no library")
    return found


def has_compiler() -> bool:
    """Whether torch finds a C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return shutil.which(get_cpp_compiler()) is not None
    except InvalidCxxCompiler:
        return False


@contextmanager
def _quiet() -> Iterator[None]:
    """Run a block without what torch says about its own workings."""
    log = logging.getLogger("torch._inductor")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


@contextmanager
def _side_by_side() -> Iterator[None]:
    """Within it the C++ of the loop is compiled beside that of its kernels, not before."""
    try:
        from torch._inductor.cpp_builder import CppBuilder

        build: Any = CppBuilder.build
    except (ImportError, AttributeError):
        yield
        return
    running: list[Future[None]] = []

    def beside(builder: Any) -> None:
        if str(getattr(builder, "_name", "")).endswith(".wrapper"):
            running.append(pool.submit(build, builder))
            return
        build(builder)
        while running:  # whoever comes next may need it
            running.pop().result()

    with ThreadPoolExecutor(1) as pool, patch.object(CppBuilder, "build", beside):
        yield


def _tidy(made: Path) -> None:
    """Keep the library, and what it needs beside it."""
    for path in made.glob("*.wrapper.json"):  # operations that torch has no C function for
        path.rename(made / "step.json")
    for path in made.iterdir():
        if path.suffix not in (".so", ".cubin") and path.name != "step.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _replace(made: Path, place: Path) -> None:
    try:
        made.rename(place)
    except OSError:
        if any(place.glob("*.so")):  # another process was faster
            return
        shutil.rmtree(place, ignore_errors=True)
        made.rename(place)


def _prune(root: Path) -> None:
    """Forget the oldest."""
    with suppress(OSError):  # other processes may be at work here
        kept = sorted((p for p in root.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
        for path in kept[:-_MOST_KEPT]:
            shutil.rmtree(path, ignore_errors=True)
