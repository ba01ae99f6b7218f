"""The operations of a training step, one public function each.

They work on tensors only and do not depend on a model, a data set or DeepSpeed. The plain PyTorch code in ``reference``
is the specification; the native C++ and CUDA kernels are tested against it.
"""
