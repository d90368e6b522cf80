"""The roles as Ray actors, and a run from the driver's side."""

import os
import sys


def _authenticate_local_clusters() -> None:
    """Ray reads its authentication mode when it is first imported, so this stands before every `import ray` below.

    A cluster that already exists (RAY_ADDRESS) keeps its own mode and token; so does a program that imported ray first.
    """
    if "ray" in sys.modules or os.environ.get("RAY_ADDRESS"):
        return
    os.environ.setdefault("RAY_AUTH_MODE", "token")


_authenticate_local_clusters()
