"""The token of clusters that are started here: in Ray's own file, so that this user's other processes can join them."""

import os
import secrets
import tempfile
from collections.abc import MutableMapping
from pathlib import Path

TOKEN_FILE = Path(".ray") / "auth_token"  # below the home folder, where Ray looks by itself


def ensure_token(environment: MutableMapping[str, str] = os.environ, *, home: Path | None = None) -> None:
    """Nothing where the environment names a token; else the file, made with mode 600 if it is not there.

    Where the home folder cannot be written, the token stays in this process: nobody else can join its clusters.
    """
    if environment.get("RAY_AUTH_TOKEN") or environment.get("RAY_AUTH_TOKEN_PATH"):
        return
    try:
        _make_token_file((home or Path.home()) / TOKEN_FILE)
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        environment["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def _make_token_file(path: Path) -> None:
    """Complete from the first moment on, and never twice: several runs may start at once."""
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # of mode 600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        os.link(temporary, path)
    except FileExistsError:
        pass  # another process was first; its token is as good
    finally:
        os.unlink(temporary)
