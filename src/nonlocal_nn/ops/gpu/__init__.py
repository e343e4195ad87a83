"""Our own kernel for GPUs, in Triton."""
