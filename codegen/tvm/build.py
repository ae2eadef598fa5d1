"""Builds TVM kernel files: the machine code's LLVM text, which the runtime compiles in a moment without a C++ compiler.

A kernel file defines `kernel() -> tvm.IRModule`, a scheduled module whose function is called "main". Building runs the file, compiles the
module for a processor, and keeps the LLVM module as text: it is readable, loads in 40 ms, and two compiles give the same bytes.
"""

from __future__ import annotations

import linecache
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ringc.codegen import cpu
from ringc.codegen.backend import Built, Launcher, run_source
from ringc.codegen.cache import Cache, cache_key
from ringc.codegen.kernel import Number, Source
from ringc.codegen.triton.worker import WorkerProcess, serve
from ringc.codegen.tvm.threads import set_environment, usable_cores
from ringc.errors import CodegenError, ToolchainError, did_you_mean
from ringc.passes.target import Target

PACKAGE = "apache-tvm"

_PROCESS_PAYS = 16
"""Kernels from which a second compiler process, which takes 3 s to start, is worth it: Python's lock keeps threads from helping."""

_LLVM_NAMES = {
    "sse4_2": "sse4.2", "avx": "avx", "avx2": "avx2", "fma": "fma", "f16c": "f16c", "bmi2": "bmi2",
    "avx512f": "avx512f", "avx512bw": "avx512bw", "avx512cd": "avx512cd", "avx512dq": "avx512dq", "avx512vl": "avx512vl",
    "avx512_vnni": "avx512vnni", "avx512_bf16": "avx512bf16", "avx512_fp16": "avx512fp16",
    "amx_tile": "amx-tile", "amx_bf16": "amx-bf16",
    "asimd": "neon", "asimdhp": "fullfp16", "asimddp": "dotprod", "bf16": "bf16", "i8mm": "i8mm", "sve": "sve", "sve2": "sve2",
}  # fmt: skip
"""Extensions that matter to generated code: the system's name (as in `ringc.codegen.cpu`) -> LLVM's."""


def import_tvm() -> Any:
    """The package `tvm`, with its threads set up.

    Raises:
        ToolchainError: it isn't installed.
    """
    set_environment()
    try:
        import tvm
        import tvm.script.parser
        import tvm.target.codegen
    except ImportError as error:
        raise ToolchainError(f"TVM can't be imported: {error}", help="pip install 'ringc[cpu]'") from error
    return tvm


@dataclass(frozen=True)
class Processor:
    """What code is generated for.

    Attributes:
        name: LLVM's name of the processor, as in "znver4" or "x86-64-v3".
        features: extensions that the code may use, by the system's names (`ringc.codegen.cpu`): a machine that lacks one can't run it.
        without: LLVM's names of features that this processor should have and doesn't, as under some hypervisors.
        threads: pieces into which parallel loops are thought to be cut.
    """

    name: str
    features: tuple[str, ...]
    without: tuple[str, ...] = ()
    threads: int = 1

    def tvm_target(self) -> Any:
        """TVM's description of it."""
        wanted: dict[str, Any] = {"kind": "llvm", "mcpu": self.name, "num-cores": self.threads}
        if self.without:
            wanted["mattr"] = [f"-{f}" for f in self.without]
        return import_tvm().target.Target(wanted)


@cache
def processor(name: str | None = None) -> Processor:
    """A processor by LLVM's name; None is this machine's.

    Raises:
        ToolchainError: LLVM knows no such processor, or TVM isn't installed.
    """
    tvm = import_tvm()
    llvm = tvm.target.codegen
    own = llvm.llvm_get_system_cpu()
    known = set(llvm.llvm_get_cpu_archlist(tvm.target.Target({"kind": "llvm"})))
    chosen = str(name or own)
    if chosen not in known:
        raise ToolchainError(
            f"LLVM knows no processor '{chosen}'", help=did_you_mean(chosen, known) or "x86-64-v3 runs on most machines"
        )
    has = llvm.llvm_get_cpu_features(tvm.target.Target({"kind": "llvm", "mcpu": chosen}))
    named = tuple(mine for mine, theirs in _LLVM_NAMES.items() if theirs in has)
    absent = tuple(cpu.missing_features(named)) if name is None else ()
    return Processor(
        chosen,
        tuple(f for f in named if f not in absent),
        tuple(_LLVM_NAMES[f] for f in absent),
        usable_cores(),
    )


def module_of(text: str, name: str) -> Any:
    """The `tvm.IRModule` of a kernel file's text.

    TVM's script parser reads the source of the functions that it is given, so the text is made known under a name that says that it is
    no file; the result doesn't depend on it.

    Raises:
        CodegenError: the text doesn't run, or what it describes is no valid module.
    """
    import_tvm()
    from tvm.error import DiagnosticError

    file = f"<kernel {name}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    names: dict[str, Any] = {"__name__": f"ringc_kernel_{name}", "__file__": file}
    try:
        exec(compile(text, file, "exec"), names)  # noqa: S102 - it was generated by the caller
        return names["kernel"]()
    except (
        SyntaxError,
        NameError,
        ImportError,
        AttributeError,
        TypeError,
        ValueError,
        KeyError,
        RuntimeError,
        DiagnosticError,
    ) as error:
        raise CodegenError(f"kernel @{name}: {type(error).__name__}: {error}") from error
    finally:
        linecache.cache.pop(file, None)


def compile_kernel(text: str, name: str, machine: Processor | None = None, *, assembly: bool = False) -> Built:
    """Compile a kernel file's text in this process.

    Args:
        text: of the file.
        name: of the kernel, for messages.
        machine: what to compile for; None is this machine.
        assembly: give the assembly text too, as ".s".

    Raises:
        CodegenError: it doesn't compile.
        ToolchainError: TVM isn't installed.
    """
    tvm = import_tvm()
    module = module_of(text, name)
    target = (machine or processor()).tvm_target()
    try:
        library = tvm.compile(module, target=target)
    except (RuntimeError, ValueError, TypeError) as error:
        raise CodegenError(f"kernel @{name} doesn't compile: {str(error).strip().splitlines()[-1]}") from error
    ll = canonical_ll(library.mod.inspect_source("ll"))
    files = {".ll": ll.encode()}
    if assembly:
        files[".s"] = library.mod.inspect_source("asm").encode()
    return Built(files, resources_of(ll))


_HOST_POINTER = re.compile(r'0x([0-9a-f]{6,16})(?=[".])')


def canonical_ll(text: str) -> str:
    """LLVM text with its alias-analysis types, which TVM names after host pointers, numbered in the order of their appearance."""
    numbers: dict[str, int] = {}
    return _HOST_POINTER.sub(lambda found: f"b{numbers.setdefault(found[1], len(numbers))}", text)


def resources_of(ll: str) -> dict[str, Number]:
    """What an LLVM module is and takes.

    `ll_bytes`: length of the text; `heap_workspaces`: places where scratch memory is taken from TVM's pool; `stack_bytes`: scratch
    memory on a thread's stack, as far as it isn't kept in registers; `parallel_loops`: loops that are given to the thread pool.
    """
    stack = 0
    for count, bits in re.findall(r"= alloca \[(\d+) x (?:float|i(\d+)|<\d+ x float>)\]", ll):
        stack += int(count) * (int(bits) // 8 if bits else 4)
    return {
        "ll_bytes": len(ll),
        "heap_workspaces": len(re.findall(r"load ptr, ptr @__TVMBackendAllocWorkspace", ll)),
        "parallel_loops": len(re.findall(r"load ptr, ptr @__TVMBackendParallelLaunch", ll)),
        "stack_bytes": stack,
    }


def compile_many(
    texts: Mapping[str, str],
    machine: Processor | None = None,
    *,
    assembly: bool = False,
    workers: int | None = None,
    done: Callable[[str], None] = lambda _name: None,
) -> dict[str, Built]:
    """Compile kernel files' texts, by name. Many are shared out between this process and others.

    Args:
        workers: processes; None is one for each core where there are enough kernels, else this one alone.
        done: told the name of each finished kernel, from this thread.

    Raises:
        CodegenError: one doesn't compile.
        ToolchainError: TVM isn't installed.
    """
    count = workers if workers is not None else min(usable_cores(), 1 + len(texts) // _PROCESS_PAYS)
    machine = machine or processor()
    if count <= 1:
        return {
            name: _reported(compile_kernel(text, name, machine, assembly=assembly), name, done)
            for name, text in texts.items()
        }
    # Longest first, so that none is left alone at the end; the text's length stands for the time.
    waiting = sorted(texts, key=lambda name: len(texts[name]))
    built: dict[str, Built] = {}
    environment = {name: value for name, value in os.environ.items() if name.startswith("TVM_")}
    others = [WorkerProcess(__name__, environment=environment, what="a compiler process") for _ in range(count - 1)]

    def work(compiler: Callable[[str, str], Built]) -> None:
        while waiting:
            name = waiting.pop()
            try:
                built[name] = compiler(texts[name], name)
            except BaseException:
                waiting.clear()
                raise

    try:
        with ThreadPoolExecutor(count - 1) as pool:
            futures = [pool.submit(work, partial(_compile_in, other, machine, assembly)) for other in others]
            work(lambda text, name: _reported(compile_kernel(text, name, machine, assembly=assembly), name, done))
            own = set(built)
            for future in futures:
                future.result()
    finally:
        for other in others:
            other.close()
    for name in texts:
        if name not in own:
            done(name)
    return {name: built[name] for name in texts}


def _reported(built: Built, name: str, done: Callable[[str], None]) -> Built:
    done(name)
    return built


def _compile_in(worker: WorkerProcess, machine: Processor, assembly: bool, text: str, name: str) -> Built:
    request = {"text": text, "name": name, "machine": asdict(machine), "assembly": assembly}
    answer = worker.request(request, doing=f"compiling {name}")
    if failed := answer.get("error"):
        raise CodegenError(failed["message"], help=failed["help"])
    result = answer["result"]
    return Built({ending: text.encode() for ending, text in result["files"].items()}, result["resources"])


def _handle(request: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in request["machine"].items()}
    machine = Processor(**fields)
    built = compile_kernel(request["text"], request["name"], machine, assembly=request["assembly"])
    return {
        "files": {ending: data.decode() for ending, data in built.files.items()},
        "resources": dict(built.resources),
    }


class TvmBackend:
    """See `ringc.codegen.backend.Backend`.

    Args:
        cpu_name: LLVM's name of the processor to build for; None is this machine's.
        assembly: keep the assembly text of each kernel beside its LLVM text.
    """

    def __init__(self, cpu_name: str | None = None, *, assembly: bool = False) -> None:
        self.cpu_name = cpu_name
        self.assembly = assembly

    def build(
        self, sources: Sequence[Source], target: Target, cache: Cache | None, done: Callable[[str], None]
    ) -> dict[str, Built]:
        """Build kernel files; what the cache has is not built again."""
        keys = {s.name: self._key(s, target) for s in sources}
        built: dict[str, Built] = {}
        missing: dict[str, str] = {}
        for source in sources:
            found = cache.get(keys[source.name]) if cache is not None else None
            if found is None:
                missing[source.name] = source.text
            else:
                built[source.name] = Built(found, resources_of(found[".ll"].decode()), cached=True)
                done(source.name)
        if missing:
            if cache is not None:
                cache.check_writable()
            made = compile_many(missing, processor(self.cpu_name), assembly=self.assembly, done=done)
            for name, result in made.items():
                if cache is not None:
                    cache.put(keys[name], result.files)
            built |= made
        return {s.name: built[s.name] for s in sources}

    def _key(self, source: Source, target: Target) -> str:
        return cache_key({"kernel": source.text, "assembly": self.assembly, **self.versions(target)})

    def versions(self, target: Target) -> dict[str, str]:
        """TVM's version, and the processor: by name if it was given, else by what the system says of it, which needs no TVM."""
        try:
            return {"tvm": version(PACKAGE), "processor": self.cpu_name or system_processor()}
        except PackageNotFoundError as error:
            raise ToolchainError(f"{PACKAGE} isn't installed", help="pip install 'ringc[cpu]'") from error

    def launcher(self, path: Path, name: str) -> Launcher:
        """A kernel of a source file, built for this machine and ready to run."""
        tvm = import_tvm()
        library = tvm.compile(run_source(path)["kernel"](), target=processor().tvm_target())
        launch: Launcher = library["main"]
        return launch


@cache
def system_processor() -> str:
    """This machine's processor as the system names it, with its features and cores: machines of equal text run each other's code."""
    wanted = ("vendor_id", "cpu family", "model", "CPU implementer", "CPU part")
    found: dict[str, str] = {}
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in wanted:
            found.setdefault(key.strip(), value.strip())
    return " ".join([cpu.architecture(), *found.values(), *cpu.features(), f"{usable_cores()} cores"])


if __name__ == "__main__":
    serve(_handle)
