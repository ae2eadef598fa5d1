"""Template `tvm.linear_segments`: chunked linear attention on segments of each sequence side by side, for more threads than heads.

Three parallel loops. The first builds up from zero what each segment but the last leaves behind; the second turns this into what enters
each segment, starting from the sequence's state; the third runs the blocks of `ringc.codegen.tvm.linear_attention` on every segment from
there, and the last segment of a sequence leaves the sequence's state. Half of the work, `S += k v`, is done twice, so this pays only where
sequences and heads are too few to occupy the threads.
"""

from __future__ import annotations

from ringc.codegen.kernel import Kernel
from ringc.codegen.tvm.linear_attention import BLOCK, Emitter


def emit(kernel: Kernel) -> str:
    """`tvm.linear_segments{chunk,segment,segments}`: the file's body.

    `chunk`: tokens of a block. `segment`: least tokens of a segment. `segments`: into how many a batch is cut at most, beside one more for
    each sequence; half as many sequences are not cut. The workspace f32[(B + min(N // segment, segments)) * H, Dk, Dv] holds what enters
    each segment.

    Raises:
        CodegenError: the region is no single linear attention on f32.
    """
    config = kernel.implementation
    return _Segments(kernel).segmented(config["chunk"], config["segment"], config["segments"])


class _Segments(Emitter):
    """A task is a head of a segment, and its state is the segment's place in the workspace."""

    def state(self) -> str:
        return f"workspace0[piece * {self.heads} + h, #, {self.column()}]"

    def load(self) -> None:
        self.each_row(f"S[@] = {self.state()}")

    def store(self) -> None:
        self.each_row(f"{self.state()} = S[@]")

    def segmented(self, chunk: int, segment: int, segments: int) -> str:
        out = self.script
        with out.main():
            whole = segments * chunk
            out("# Tokens of a segment. Where there are half as many sequences as segments, they stay in one piece.")
            cut = f"T.max(T.int64({segment}), (N + {whole - 1}) // {whole} * {chunk})"
            out(f"segment: T.let = T.Select(2 * B < {segments}, {cut}, T.max(N, T.int64(1)))")
            self.number(segment)
            out("# What a segment adds, from zero; nobody asks what the last one of a sequence does.")
            with self.tasks("piece", "begins[B]"):
                self.piece()
                with out.block("if piece + 1 < begins[b + 1]:"):
                    self.each_element(f"{self.state()} = T.float32(0)")
                    self.walk(chunk, outputs=False)
            out("# What enters a segment: the sequence's state, and what the segments before it add.")
            with self.tasks("b", "B"):
                self.enter()
            out("# Every segment from there; the last one of a sequence leaves its state.")
            with self.tasks("piece", "begins[B]"):
                self.piece()
                self.walk(chunk, outputs=True)
                out("slot: T.let = slots[b]")
                with out.block("if slot >= 0 and piece + 1 == begins[b + 1]:"):
                    self.each_element(f"{self.pool()} = {self.state()}")
        return self.file(["exp"])

    def each_element(self, statement: str) -> None:
        """A statement on each row and column of a state."""
        with self.script.block(f"for i in T.serial({self.dk}):"):
            self.script.vectors(self.tiles.width, statement.replace("#", "i"))

    def enter(self) -> None:
        """A row at a time, in registers: it goes into a segment's place, whose own sum comes out and is added to the decayed row.

        The last segment's place holds no sum yet; what becomes of the row there is read by nobody.
        """
        out, width = self.script, self.tiles.width
        out("slot: T.let = slots[b]")
        out.scratch("over", (1,))
        out('over[0] = exp(T.float32(0) - slopes[h] * T.Cast("float32", segment))')
        with out.block(f"for i in T.serial({self.dk}):"):
            out.scratch("row", (width,))
            out.scratch("added", (width,))
            with out.block("if slot >= 0:"):
                out.vectors(width, f"row[@] = {self.pool().replace('#', 'i')}")
            with out.block("else:"):
                out.vectors(width, "row[@] = T.float32(0)")
            with out.block("for piece in T.serial(begins[b], begins[b + 1]):"):
                place = self.state().replace("#", "i")
                out.vectors(width, f"added[@] = {place}", f"{place} = row[@]", "row[@] = row[@] * over[0] + added[@]")

    def number(self, segment: int) -> None:
        """Segments are numbered sequence by sequence: `begins` has each sequence's first, `owners` each segment's sequence.

        A sequence without tokens has none, and its state stays. Others have at most one more than their tokens fill, which makes
        `B + N // segment` in all.
        """
        out = self.script
        out('begins = T.alloc_buffer((B + 1,), "int32", scope="global")')
        out(f'owners = T.alloc_buffer((B + N // {segment} + 1,), "int32", scope="global")')
        out("begins[0] = 0")
        with out.block("for b in T.serial(B):"):
            out('tokens: T.let = T.Cast("int64", offsets[b + 1] - offsets[b])')
            out('begins[b + 1] = begins[b] + T.Cast("int32", (tokens + segment - 1) // segment)')
            with out.block("for piece in T.serial(begins[b], begins[b + 1]):"):
                out('owners[piece] = T.Cast("int32", b)')

    def piece(self) -> None:
        """Tokens of a segment."""
        out = self.script
        out("b: T.let = owners[piece]")
        out('first: T.let = T.Cast("int64", offsets[b]) + T.Cast("int64", piece - begins[b]) * segment')
        out('tokens: T.let = T.min(segment, T.Cast("int64", offsets[b + 1]) - first)')

    def walk(self, chunk: int, *, outputs: bool) -> None:
        """All tokens of a segment, from the state in its place to the state in its place."""
        out = self.script
        with out.block(f"if {self.flat(chunk)}:"):
            self.chunked(chunk, outputs)
        with out.block("else:"), out.block(f"for block in T.serial((tokens + {BLOCK - 1}) // {BLOCK}):"):
            self.recurrent(f"first + block * {BLOCK}", f"T.min(T.int64({BLOCK}), tokens - block * {BLOCK})", outputs)
