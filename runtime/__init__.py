"""How an artifact runs: load, weights, cache, execute, sample, tokenize.

Running needs torch, safetensors, psutil and the artifact's back end: nothing here imports the compiler, but for `check`.
"""
