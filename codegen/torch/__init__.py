"""Target `torch`: kernels as plain PyTorch code, for machines without TVM and as candidates beside its kernels."""
