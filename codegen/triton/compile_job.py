"""What is compiled ahead of time, and what comes of it: a kernel of a file with one configuration, and its stages and resources."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from ringc.codegen.cache import cache_key
from ringc.codegen.inspect.resources import Resources
from ringc.codegen.triton.toolchain import Toolchain
from ringc.errors import CodegenError, did_you_mean

#: Stages kept of every kernel, in the order of compilation; all but "cubin" are text.
STAGES = ("ttir", "ttgir", "llir", "ptx", "cubin", "sass")

_META = "meta.json"

Constant = bool | int | float | str | None


@dataclass(frozen=True)
class CompileJob:
    """One kernel to compile.

    Attributes:
        source: text of a Python file that imports only Triton and the standard library at its top.
        kernel: name of the `@triton.jit` function in it.
        signature: run-time parameter to Triton type: "*bf16", "*fp32", "i32", "fp32", ...
        constants: `tl.constexpr` parameter to value; None for a pointer that isn't passed.
        arch: 80, 90 or 100.
        num_warps, num_stages: launch shape and software-pipeline depth.
        options: further fields of Triton's CUDAOptions, such as "maxnreg". `enable_fp_fusion` is True unless given: its
            default changes between versions of Triton.
        divisible: parameters that are multiples of 16, in bytes for pointers. None stands for what the JIT would find
            at launch: all pointers, and integers named as strides; parameters that the kernel marks `do_not_specialize`
                are left out.
        file_name: what the file is called in line information and messages.
        cost: any measure of the time to compile; costly jobs start first.
    """

    source: str
    kernel: str
    signature: Mapping[str, str]
    constants: Mapping[str, Constant]
    arch: int
    num_warps: int = 4
    num_stages: int = 3
    options: Mapping[str, Constant] = field(default_factory=dict)
    divisible: Collection[str] | None = None
    file_name: str = ""
    cost: float = 0.0

    @property
    def shown_name(self) -> str:
        return self.file_name or f"kernels/{self.kernel}.py"

    @property
    def all_options(self) -> dict[str, Constant]:
        """Options as given to Triton."""
        return {"enable_fp_fusion": True, **self.options, "num_warps": self.num_warps, "num_stages": self.num_stages}

    def key(self, toolchain: Toolchain) -> str:
        """The cache's key: everything that decides the result, and the compilers."""
        parts = {
            "kind": "triton",
            "source": self.source,
            "file_name": self.shown_name,
            "kernel": self.kernel,
            # A list of pairs: the order of arguments is part of a kernel's interface.
            "signature": list(self.signature.items()),
            "constants": dict(self.constants),
            "options": self.all_options,
            "divisible": None if self.divisible is None else sorted(self.divisible),
            "arch": self.arch,
            "toolchain": toolchain.identity,
        }
        return cache_key(parts)


@dataclass(frozen=True)
class CompiledKernel:
    """A kernel compiled for one architecture.

    Attributes:
        name: the entry's name in the binary.
        arch: what it was compiled for.
        key: its key in the cache.
        resources: registers, spills, shared memory, tensor-core instructions.
        launch: what a launcher needs: "num_warps", "shared" and "global_scratch_size" (bytes).
        files: stage to contents, see `STAGES`.
        toolchain: versions of the compilers that made it.
        cached: whether it came from the cache.
        seconds: what compiling took when it was made.
    """

    name: str
    arch: int
    key: str
    resources: Resources
    launch: Mapping[str, int]
    files: Mapping[str, bytes]
    toolchain: Mapping[str, str]
    cached: bool
    seconds: float

    def text(self, stage: str) -> str:
        """A stage's text.

        Raises:
            CodegenError: the kernel has no such stage, or it is binary.
        """
        if stage == "cubin" or stage not in self.files:
            known = [name for name in self.files if name != "cubin"]
            raise CodegenError(f"kernel {self.name} has no text of stage {stage!r}", help=did_you_mean(stage, known))
        return self.files[stage].decode()

    def to_files(self) -> dict[str, bytes]:
        """As members of a cache entry."""
        meta = {
            "name": self.name,
            "arch": self.arch,
            "resources": self.resources.to_dict(),
            "launch": dict(self.launch),
            "toolchain": dict(self.toolchain),
            "seconds": self.seconds,
        }
        return {**self.files, _META: json.dumps(meta, sort_keys=True).encode()}

    @classmethod
    def from_files(cls, key: str, members: Mapping[str, bytes]) -> CompiledKernel:
        """From the members of a cache entry."""
        meta = json.loads(members[_META])
        return cls(
            name=meta["name"],
            arch=meta["arch"],
            key=key,
            resources=Resources.from_dict(meta["resources"]),
            launch=meta["launch"],
            files={stage: members[stage] for stage in STAGES},
            toolchain=meta["toolchain"],
            cached=True,
            seconds=meta["seconds"],
        )
