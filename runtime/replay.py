"""Routing that is replayed in the model: its experts are those of a recording. This needs the compiler.

Kernels choose experts, and none can be told to take others. So behind each launch of one a step computes what its outputs are for the given
experts, by the meaning that the artifact's module gives the kernel, and puts that in their place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import TYPE_CHECKING

import torch

from ringc.codegen.artifact import MANIFEST
from ringc.codegen.packing import unpack
from ringc.errors import Place, RunError
from ringc.ir.core import Block, Env
from ringc.ir.interpret import run_block
from ringc.ir.ops.routing import Route
from ringc.ir.replay import Replay, is_choice
from ringc.ir.types import TensorType
from ringc.runtime.artifact import Artifact
from ringc.runtime.check import read_module
from ringc.runtime.manifest import contradiction
from ringc.runtime.routing import NONE, of_all

if TYPE_CHECKING:
    from ringc.runtime.execute import Numbers


@dataclass(frozen=True)
class Choice:
    """What a layer's routing took in a call, and what it would have taken.

    Attributes:
        route: how the choice is made.
        scores: f32[N, E] with the bias, of which the highest are chosen, in the model's own computation.
        own: i32[N, k], what these scores choose.
        taken: i32[N, k], what was replayed.

    Of rows that the last layer of a prefill hasn't made the scores are NaN, and the experts `NONE`.
    """

    route: Route
    scores: torch.Tensor
    own: torch.Tensor
    taken: torch.Tensor

    def of_all(self, tokens: int, rows: Numbers) -> Choice:
        """The choice of these rows as that of all tokens. A copy."""
        own, taken = (of_all(x, tokens, rows, NONE) for x in (self.own, self.taken))
        return Choice(self.route, of_all(self.scores, tokens, rows, nan), own, taken)


@dataclass
class _Judged(Replay):
    """A replay that keeps the choice beside what was taken. How far they are apart may be asked later, of all at once."""

    choice: Choice | None = None

    def judge(self, route: Route, scores: torch.Tensor, own: torch.Tensor, taken: torch.Tensor) -> None:
        self.choice = Choice(route, scores, own, taken)
        self.scores.append(scores)


class ReplayedLaunch:
    """The step behind a launch of a routing kernel.

    Attributes:
        experts: i32[N, k]; what is written here is taken in the next run.
        choice: of the last run.
    """

    def __init__(
        self, block: Block, tensors: Sequence[torch.Tensor], sizes: Mapping[str, int], device: torch.device
    ) -> None:
        (self._route,) = (op for op in block.ops if isinstance(op, Route))
        inputs = len(block.args)
        self._block, self._sizes, self._device = block, dict(sizes), device
        self._inputs = tensors[:inputs]
        self._outputs = tensors[inputs : inputs + len(block.outputs)]
        self.experts = torch.zeros(
            Env(self._sizes).shape(self._route.results[0].type.shape), dtype=torch.int32, device=device
        )
        self.choice: Choice | None = None

    def wanted(self, taken: torch.Tensor, tokens: int, rows: Numbers) -> torch.Tensor:
        """Of a call's experts, a row for each token, those of the rows that are made here: all, or the wanted ones.

        Raises:
            RunError: they are of another shape or type.
        """
        if not isinstance(taken, torch.Tensor) or taken.dtype.is_floating_point or taken.dtype.is_complex:
            found = taken.dtype if isinstance(taken, torch.Tensor) else type(taken).__name__
            raise RunError(f"experts of type {found}", help="give tensors of integers, as `record_routing` does")
        if taken.shape != (tokens, *self.experts.shape[1:]):
            raise RunError(
                f"the recording has experts {list(taken.shape)} for a routing of {[tokens, *self.experts.shape[1:]]}",
                help="replay the calls that were recorded, or cut the recording: `ringc.runtime.routing.cut`",
            )
        return taken if len(self.experts) == tokens else taken[torch.as_tensor(rows, device=taken.device)]

    def give(self, taken: torch.Tensor) -> torch.Tensor:
        """Take these in the next run. Gives back, for each row on the device, whether they are distinct numbers of experts."""
        given = taken.to(self.experts.device)
        self.experts.copy_(given)
        return is_choice(given, self._route.experts)

    def refusal(self, taken: torch.Tensor, right: torch.Tensor, tokens: Numbers) -> RunError:
        """What is wrong with the experts of these tokens, which are `right` or not."""
        row = int((~right).nonzero()[0, 0])
        help = f"experts are distinct, and 0 .. {self._route.experts - 1}"
        if bool((taken[row] == NONE).all()):
            help = "a prefill records the last layer's experts of tokens whose logits it is asked for: ask for `all_logits`"
        return RunError(
            f"the experts {taken[row].tolist()} of token {tokens[row]} are no choice of {self._route.experts}",
            help=help,
        )

    def run(self) -> None:
        """Compute the kernel's outputs for `experts`, in the types that its function gives, and overwrite them."""
        replay = _Judged([self.experts])
        inputs = [
            self._unpacked(arg.type, x) if isinstance(arg.type, TensorType) else x
            for arg, x in zip(self._block.args, self._inputs, strict=True)
        ]
        with self._device:  # where constants are made, too
            made = run_block(self._block, inputs, Env(self._sizes, replay=replay))
        for output, value in zip(self._outputs, made, strict=True):
            output.copy_(value)
        self.choice = replay.choice

    def _unpacked(self, type: TensorType, x: torch.Tensor) -> torch.Tensor:
        blocks = type.layout.blocks
        return unpack(x, Env(self._sizes).shape(type.shape), blocks) if blocks else x


class Meanings:
    """What the routing kernels of an artifact mean.

    Raises:
        ArtifactError: its module can't be read, or lacks a kernel.
    """

    def __init__(self, artifact: Artifact, device: torch.device) -> None:
        self._device = device
        functions = read_module(artifact, "module").functions
        self._blocks = {
            name: functions[name].body for name, entry in artifact.kernels.items() if entry["family"] == "route"
        }
        for name, block in self._blocks.items():
            if sum(isinstance(op, Route) for op in block.ops) != 1:
                raise contradiction(
                    f"the kernel {name} is of the family route, and routes not once", Place(artifact.path(MANIFEST))
                )

    def behind(self, kernel: str, tensors: Sequence[torch.Tensor], sizes: Mapping[str, int]) -> list[ReplayedLaunch]:
        """What goes behind a launch of a kernel on these tensors: nothing, unless it routes."""
        if kernel not in self._blocks:
            return []
        return [ReplayedLaunch(self._blocks[kernel], tensors, sizes, self._device)]


@dataclass
class RoutingReplay:
    """A recording that is being replayed.

    Attributes:
        recording: see `ringc.runtime.routing.Routing`.
        judged: keep choices.
        calls: how many calls were replayed.
        choices: for each of them, if they are kept, what each layer with experts took and would have taken.
    """

    recording: Sequence[Sequence[torch.Tensor]]
    judged: bool
    calls: int = 0
    choices: list[tuple[Choice, ...]] = field(default_factory=list)

    def give(self, launches: Sequence[ReplayedLaunch], tokens: int, rows: Numbers) -> None:
        """Give a program of so many tokens, of which these rows are wanted, the experts of the next call.

        Raises:
            RunError: there is no further call, or it doesn't fit.
        """
        if self.calls == len(self.recording):
            raise RunError(
                f"the recording that is replayed has {self.calls} calls, and this is one more",
                help="replay the calls that were recorded, or cut the recording: `ringc.runtime.routing.cut`",
            )
        call = self.recording[self.calls]
        if len(call) != len(launches):
            raise RunError(
                f"a recorded call has experts of {len(call)} layers, and the model {len(launches)}",
                help="replay a recording of this model",
            )
        wanted = [launch.wanted(taken, tokens, rows) for launch, taken in zip(launches, call, strict=True)]
        right = [launch.give(taken) for launch, taken in zip(launches, wanted, strict=True)]
        # The host waits for the device once, not for each layer.
        if right and not bool(torch.cat(right).all()):
            at = next(i for i, ones in enumerate(right) if not bool(ones.all()))
            of = rows if len(right[at]) == len(rows) else range(tokens)
            raise launches[at].refusal(wanted[at], right[at], of)
        self.calls += 1

    def note(self, launches: Sequence[ReplayedLaunch], tokens: int, rows: Numbers) -> None:
        """Keep the choices of the run that is done, if they are wanted. Copies: a CUDA graph writes the next run's over them."""
        if self.judged:
            made = (launch.choice for launch in launches)
            self.choices.append(tuple(choice.of_all(tokens, rows) for choice in made if choice is not None))
