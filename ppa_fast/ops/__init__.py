"""The operations of the step, one public function each, in plain PyTorch.

They know tensors only: no model, no data set, no DeepSpeed. Each reads like its formula and is the specification that
a faster implementation is held to.
"""
