"""Ablation: trains alignment variants over several seeds and compares their scores on tasks."""
