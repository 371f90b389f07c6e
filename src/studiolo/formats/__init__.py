"""Weights on disk: the Diffusers folder."""
