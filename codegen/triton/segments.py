"""Text that kernels over ragged batches share: which piece of which sequence a program works on."""

from __future__ import annotations

PIECE_OF = '''
@triton.jit
def piece_of(offsets, row, size, sequences, steps):
    """Which sequence a piece of at most `size` tokens belongs to: (sequence, its first token, its end, number of the piece in it).

    Sequence b has the rows `offsets[b] // size + b` up to its successor's, which is enough for its pieces; a row too many lies behind
    the end. The rows grow with b, so `steps` halvings find it.
    """
    low = 0
    high = sequences
    for _ in range(steps):
        middle = (low + high) // 2
        behind = tl.load(offsets + middle) // size + middle > row
        low = tl.where(behind, low, middle)
        high = tl.where(behind, middle, high)
    begin = tl.load(offsets + low)
    return low, begin, tl.load(offsets + low + 1), row - begin // size - low
'''.strip("\n")
"""The search of the map from rows of a grid to pieces of sequences, on the device. `N // size + B` rows hold all pieces."""
