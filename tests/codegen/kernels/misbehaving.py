"""Functions that fail in the ways in which a kernel file can."""

import os
import time

import triton
import triton.language as tl


@triton.jit
def write_behind_the_end(y, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, at.to(tl.float32), mask=at < n + 1)


@triton.jit
def read_behind_the_end(x, y, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(y + at, tl.load(x + at + 1, mask=at < n, other=0.0), mask=at < n)


@triton.jit
def no_such_function(y):
    tl.store(y, tl.not_a_function(1.0))


def launch(y):
    write_behind_the_end[(1,)](y, y.numel(), BLOCK=64)


def read(x, y):
    read_behind_the_end[(1,)](x, y, x.numel(), BLOCK=64)


def undefined(y):
    no_such_function[(1,)](y)


def crash(_y):
    os.abort()


def sleep(_y):
    time.sleep(60)


def who(y):
    y.fill_(float(os.getpid()))
