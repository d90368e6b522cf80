"""Whether a run directory is free."""

from negalign_ray.config import Config
from negalign_ray.errors import ConfigError


def holds_run(config: Config) -> bool:
    return (config.run_dir / "metrics.jsonl").exists()


def require_new(config: Config) -> None:
    """ConfigError when there is a run in <run.dir>/<run.name> that was not told to go."""
    if holds_run(config) and not config.run.overwrite:
        raise ConfigError(
            f"run.name={config.run.name}: {config.run_dir} already holds a run; choose another name with "
            "--set run.name=..., or delete it with --set run.overwrite=true."
        )
