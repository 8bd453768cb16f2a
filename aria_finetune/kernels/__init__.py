"""Kernels for tokens that are sorted by expert. They know tensors only, neither models nor how tokens were routed.

Each file has one operation twice: in Triton, for tensors on a GPU, and in torch, for all others. A tensor on a CPU takes the
Triton way too where `TRITON_INTERPRET=1` was set before Triton was imported, which is how the kernels are tested without a GPU.
"""
