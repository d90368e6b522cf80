"""Align language models, online and on Ray, using examples of what they must not say."""

__version__ = "0.1.0"
