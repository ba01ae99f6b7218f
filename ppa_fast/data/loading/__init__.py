"""Samples the pairs of a global step and packs them for the device."""
