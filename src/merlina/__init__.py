"""Merlina: fine-tune language models on preference pairs, on your own machine."""

__version__ = "0.1.0"
