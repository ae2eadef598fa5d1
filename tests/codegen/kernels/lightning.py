"""Linear attention with constant decay a head: S_t = lambda S_(t-1) + k_t^T v_t, o_t = q_t S_t, chunk by chunk, one
program a head.

q, k, v, o: [T, H, D]; log2_decay: [H], log2(lambda); state: [H, D, D] fp32, read and overwritten.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["T"])
def lightning_chunk(q, k, v, o, log2_decay, state, T, H: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr):
    head = tl.program_id(0).to(tl.int64)
    decay = tl.load(log2_decay + head)
    token = tl.arange(0, CHUNK)
    channel = tl.arange(0, D)
    state_at = state + head * D * D + channel[:, None] * D + channel[None, :]
    s = tl.load(state_at)
    distance = token[:, None] - token[None, :]
    within = tl.where(distance >= 0, tl.exp2(decay * distance), 0.0)
    for start in range(0, T, CHUNK):
        rows = (start + token).to(tl.int64)
        inside = (rows < T)[:, None]
        at = (rows[:, None] * H + head) * D + channel[None, :]
        length = tl.minimum(T - start, CHUNK)
        q_tile = tl.load(q + at, mask=inside, other=0.0)
        k_tile = tl.load(k + at, mask=inside, other=0.0)
        v_tile = tl.load(v + at, mask=inside, other=0.0)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision="ieee") * within
        out = tl.dot(q_tile, s.to(q_tile.dtype), input_precision="ieee") * tl.exp2(decay * (token + 1))[:, None]
        out = tl.dot(scores.to(v_tile.dtype), v_tile, out, input_precision="ieee")
        tl.store(o + at, out.to(o.dtype.element_ty), mask=inside)
        # Rows behind the end are zero; the exponent is held at 0 there so that it can't overflow.
        to_end = tl.exp2(decay * tl.maximum(length - 1 - token, 0))
        weighted = (v_tile * to_end[:, None]).to(v_tile.dtype)
        s = tl.dot(tl.trans(k_tile), weighted, s * tl.exp2(decay * length), input_precision="ieee")
    tl.store(state_at, s)


def launch(q, k, v, o, log2_decay, state, chunk=16):
    tokens, heads, width = q.shape
    lightning_chunk[(heads,)](q, k, v, o, log2_decay, state, tokens, H=heads, D=width, CHUNK=chunk)
