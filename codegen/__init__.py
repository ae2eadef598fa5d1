"""From scheduled graphs to kernels: one folder a back end, a cache and inspection that they share."""
