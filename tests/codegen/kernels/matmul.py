"""y[T, M] = x[T, K] w[M, K]^T, fp32 accumulation."""

import triton
import triton.language as tl


@triton.jit
def matmul(
    x,
    w,
    y,
    T,
    stride_x,
    stride_y,
    M: tl.constexpr,
    K: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    column = tl.program_id(1).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    inner = tl.arange(0, BLOCK_K)
    acc = tl.zeros([BLOCK_T, BLOCK_M], dtype=tl.float32)
    for k in range(0, K, BLOCK_K):
        reduced = k + inner
        x_mask = (row < T)[:, None] & (reduced < K)[None, :]
        w_mask = (reduced < K)[:, None] & (column < M)[None, :]
        x_tile = tl.load(x + row[:, None] * stride_x + reduced[None, :], mask=x_mask, other=0.0)
        w_tile = tl.load(w + column[None, :] * K + reduced[:, None], mask=w_mask, other=0.0)
        acc = tl.dot(x_tile, w_tile, acc, input_precision="ieee")
    y_mask = (row < T)[:, None] & (column < M)[None, :]
    tl.store(y + row[:, None] * stride_y + column[None, :], acc.to(y.dtype.element_ty), mask=y_mask)


def launch(x, w, y):
    tokens, inner = x.shape
    width = w.shape[0]
    grid = (triton.cdiv(tokens, 32), triton.cdiv(width, 32))
    matmul[grid](x, w, y, tokens, x.stride(0), y.stride(0), M=width, K=inner, BLOCK_T=32, BLOCK_M=32, BLOCK_K=32)
