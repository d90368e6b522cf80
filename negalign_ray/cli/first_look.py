"""What can be seen of a configuration's files in milliseconds, before the seconds that libraries take to import.

A misspelt path or a wrong column is said at once; the plan checks everything after it.
"""

from negalign_ray.config import Config
from negalign_ray.data.first_rows import look_at_data
from negalign_ray.models.packaged import look_for_model


def first_look(config: Config) -> None:
    """DataError or ModelError; no network is asked."""
    look_for_model(config.model.path)
    look_at_data(config.data)
