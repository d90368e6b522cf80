"""Runs on the toy model, as the tests of the actors configure them."""

from tests.actors.conftest import toy_config

__all__ = ["toy_config"]
