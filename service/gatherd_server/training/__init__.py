"""The optimizers: their options, steps and kernels."""
