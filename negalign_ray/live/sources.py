"""Which source of facts a run has: its conductor while it goes on, its directory otherwise."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from negalign_ray.actors.locate import is_going_on, is_http, locate
from negalign_ray.errors import ClusterError, ConfigError, NoSuchRunError, RunEndedError, StallError, TokenError
from negalign_ray.live.conductor import ConductorSource
from negalign_ray.live.facts import RunFacts, Source
from negalign_ray.live.folder import FolderSource

ANSWER_S = 5.0  # for a conductor that is asked every second
UNREACHABLE = (ClusterError, TokenError, NoSuchRunError, RunEndedError, StallError)


@contextmanager
def open_source(run: str, address: str | None = None) -> Iterator[Source]:
    """`run` is a run directory or a name, `address` as in `attach`, whose errors may be raised.

    A run directory whose cluster cannot be reached is read by itself, unless the cluster was named by `address`.
    """
    location = locate(run, address)
    folder = location.run_dir
    if folder is not None and address is None and not is_going_on(folder):
        yield FolderSource(folder)
        return
    if is_http(location.address):
        raise ConfigError(
            f"top does not go through a dashboard ({location.address}): run it on a node of the cluster, or ask by "
            f"`negalign-ray status {run} --address {location.address}`."
        )
    with ExitStack() as stack:
        yield _reach(run, address, folder, stack)


def _reach(run: str, address: str | None, folder: Path | None, stack: ExitStack) -> Source:
    from negalign_ray.actors.attach import attach  # imports Ray, which a run directory does not need

    try:
        handle = stack.enter_context(attach(run, address, deadline_s=ANSWER_S))
        return UntilItEnds(ConductorSource(handle), folder)
    except UNREACHABLE as error:
        if folder is None or address is not None:
            raise
        return FolderSource(folder, note=f"from its files only: {error}")


class UntilItEnds:
    """A source while it answers, then the run directory where it is visible."""

    def __init__(self, source: Source, folder: Path | None) -> None:
        self._source, self._folder = source, folder

    def look(self) -> RunFacts:
        try:
            return self._source.look()
        except RunEndedError:
            if self._folder is None or isinstance(self._source, FolderSource):
                raise
            self._source = FolderSource(self._folder)
            return self._source.look()
