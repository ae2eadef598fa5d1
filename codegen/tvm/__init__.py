"""Kernels for CPUs, through TVM."""
