"""Transformers that do reinforcement learning inside their prompt, to the last matrix entry."""

__version__ = "0.1.0"
