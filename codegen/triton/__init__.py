"""The Triton back end: which toolchain, ahead-of-time compilation, the interpreter. Importing it imports no Triton."""
