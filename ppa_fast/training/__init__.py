"""The run: the loop, DeepSpeed, checkpoints, export."""
