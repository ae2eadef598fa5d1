"""A tiny model, lowered, with weights and inputs to run it by interpretation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ringc.ir.core import Module
from ringc.ir.interpret import run
from ringc.ir.ops.call import Launch
from ringc.ir.ops.source import Param
from ringc.ir.symbols import evaluate
from ringc.ir.types import DType, StateType
from ringc.model_defs.lower import lower
from ringc.model_defs.spec import Spec
from ringc.passes.framework import Pass, PassManager, verify_each
from ringc.passes.target import target


def tiny_spec(count: int = 7, change: str = "") -> Spec:
    """A model with every kind of layer, small enough to interpret."""
    parts: dict[str, Any] = {
        "name": "tiny",
        "dtype": "fp32",
        "vocabulary": {"size": 50, "tokenizer": "checkpoint"},
        "max_positions": 64,
        "hidden": 32,
        "layers": {"count": count, "M": 2},
        "heads": 4,
        "head_dim": 8,
        "rope": {"theta": 1e4, "rotary_dim": 4},
        "linear": {"decay": {"kind": "power_law"}, "norm_groups": 2},
        "softmax": {"kv_heads": 2},
        "mlp": {"width": 48, "first_k": 1},
        "moe": {
            "experts": 8,
            "top_k": 2,
            "width": 16,
            "shared_experts": 1,
            "groups": {"count": 4, "keep": 2},
            "router": {"scale": 2.5},
        },
    }
    match change:
        case "no_moe":
            parts["moe"] = None
        case "no_groups":
            parts["moe"] |= {"groups": None, "shared_experts": 0}
        case "tied":
            parts["head"] = {"tied": True}
        case "softmax_only":
            parts["layers"] = {"count": 3, "M": 0}
            parts["linear"] = None
        case "before_down":
            parts["moe"]["router"] |= {"weight_position": "before_down", "score": "softmax", "bias": False}
        case "interleaved":
            parts["rope"]["pairing"] = "interleaved"
    return Spec(**parts)


class Program:
    """A module before and after passes, with random weights."""

    def __init__(self, spec: Spec, passes: Sequence[Pass], target_name: str = "cpu") -> None:
        self.spec = spec
        self.graph = lower(spec, DType.F32)
        self.lowered = self.graph.clone()
        PassManager(passes, [verify_each]).run(self.lowered, target(target_name))
        generator = torch.Generator().manual_seed(7)
        self.weights: dict[str, torch.Tensor] = {}
        for function in self.graph.functions.values():
            for op in function.body.ops:
                if isinstance(op, Param):
                    shape = op.shape[1:] if "*" in op.source else op.shape
                    for name in op.names():
                        if name not in self.weights:
                            w = torch.randn([int(d) for d in shape], generator=generator, dtype=torch.float64)
                            self.weights[name] = (
                                1 + 0.2 * w if name.endswith("norm.weight") else w * int(shape[-1]) ** -0.5
                            )

    def run_graph(self, entry: str, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        return run(self.graph, entry, inputs, self.weights.__getitem__, torch.float64)

    def run_lowered(self, entry: str, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
        prepare = self.lowered.functions["prepare"]
        made = run(self.lowered, "prepare", [], self.weights.__getitem__, torch.float64)
        prepared = dict(zip(prepare.notes["keys"], made, strict=True))
        return run(self.lowered, entry, inputs, prepared.__getitem__, torch.float64)


def inputs_of(program: Program, entry: str, seed: int) -> list[torch.Tensor]:
    """Three sequences (one empty in prefill), in permuted slots, on pools that hold random content."""
    generator = torch.Generator().manual_seed(seed)
    lengths = [3, 0, 4] if entry == "prefill" else [1, 1, 1]
    past = [2, 5, 0]
    slots, P, S = [2, 0, 3], 4, 12
    offsets = [0]
    for n in lengths:
        offsets.append(offsets[-1] + n)
    positions = [past[b] + t for b, n in enumerate(lengths) for t in range(n)]
    ids = torch.randint(0, program.spec.vocabulary.size, (offsets[-1],), generator=generator)
    made = [ids, positions, slots, offsets]
    if entry == "prefill":
        made += [[1, 2, 6], [0, 2, 2, 3]]
    tensors = [torch.as_tensor(x, dtype=torch.int32) for x in made]
    for arg in program.graph.functions[entry].body.args:
        if isinstance(arg.type, StateType):
            shape = [P, *(evaluate(d, {"S": S}) for d in arg.type.shape)]
            tensors.append(torch.randn(shape, generator=generator, dtype=torch.float64))
    return tensors


def launched(module: Module, version: str) -> set[str]:
    """Names of the kernels that a version and its layers run."""
    functions = [f for f in module.functions.values() if f.name == version or f.name.startswith(f"{version}.")]
    return {op.kernel for f in functions for op in f.body.ops if isinstance(op, Launch)}
