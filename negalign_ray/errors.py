"""Every error a user can meet. Each message names the setting or line, the value seen, and what to do next."""

import errno

# What the system says of a disk that a StorageError tells of.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)


class NegalignError(Exception):
    """Base of all typed errors; the CLI prints its message without a traceback and exits with `exit_code`."""

    exit_code = 1


class ConfigError(NegalignError):
    """A setting is unknown, of the wrong type, or contradicts another one. Raised before anything is started."""

    exit_code = 2


class DataError(NegalignError):
    """A data file cannot be read as any supported format, or has broken rows; the message lists lines."""

    exit_code = 3


class ModelError(NegalignError):
    """A model is missing, needs remote code, is not in safetensors, or has a head we do not compute exactly."""

    exit_code = 4


class PlacementError(NegalignError):
    """The cluster cannot hold a role; the message names the missing resource bundle."""

    exit_code = 5


class CheckpointError(NegalignError):
    """A checkpoint is missing, torn, or would be written or read outside the run directory."""

    exit_code = 7


class UploadError(CheckpointError):
    """A checkpoint did not reach `checkpoints.url` in time; the local copy is untouched."""


class ClusterError(NegalignError):
    """No cluster answers at an address, or it cannot be joined from this machine."""

    exit_code = 9


class TokenError(ClusterError):
    """A cluster refuses this process: its token is missing or another one."""


class NoSuchRunError(ClusterError):
    """The cluster has no run of that name; the message lists those that it has."""


class RunEndedError(ClusterError):
    """The run is over; the message says where its results are."""


class RunExistsError(ConfigError):
    """A run of the same name goes on in the same cluster."""


class StorageError(NegalignError):
    """A run directory or another output cannot be written: a full disk, a quota, a permission. What was written before
    is untouched."""

    exit_code = 8


class RoleError(NegalignError):
    """A remote role failed. The message starts with role, rank and weight version, e.g. `sampler[1] v12: ...`."""

    exit_code = 6

    def __init__(self, message: str, *, role: str, rank: int = 0, weight_version: int | None = None):
        self.role, self.rank, self.weight_version, self.reason = role, rank, weight_version, message
        version = "" if weight_version is None else f" v{weight_version}"
        super().__init__(f"{role}[{rank}]{version}: {message}")

    def __reduce__(self):  # keyword-only arguments do not survive the default exception pickling
        return _rebuild_role_error, (type(self), self.reason, self.role, self.rank, self.weight_version)


def _rebuild_role_error(cls, message, role, rank, weight_version):
    return cls(message, role=role, rank=rank, weight_version=weight_version)


class DiedError(RoleError):
    """The process of a role is gone, or its node: it says nothing of its own any more."""


class LostObjectError(RoleError):
    """What a role was to read is gone with the node that held it. Groups that are not yet in the buffer are dropped and
    counted."""


class ScoreError(RoleError):
    """A reward head failed for good (after its retries). The groups it was scoring are dropped and counted."""


class WeightUpdateError(RoleError):
    """A sampler's loaded weights do not have the checksum that the learner announced, or the update timed out."""


class StallError(RoleError):
    """A remote call missed its deadline, or nothing moves at all; the message says what, for how long, and the setting
    that bounds it."""


class NonFiniteError(RoleError):
    """A loss or gradient norm is NaN or infinite; the message lists the ids of the groups in the batch."""


class MissingReferenceError(NegalignError, LookupError):
    """A group reached a loss that compares with references, but a response has no reference log-prob."""


class UnknownMetricError(NegalignError):
    """A metric is not in the catalogue: a mistake in the code that wrote it, so it is refused at once."""


class NothingFinishedError(NegalignError):
    """Every run of a comparison failed; the message lists them."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which `ray job stop`, Slurm, Kubernetes and systemd send: like Ctrl-C, not an error."""

    exit_code = 143  # 128 + SIGTERM, as shells have it
