"""`negalign-ray grafana`: the dashboard."""

import json


def grafana() -> None:
    """Print a Grafana dashboard of the metrics that `run.prometheus=true` exports: `negalign-ray grafana > FILE`."""
    from negalign_ray.cli import out
    from negalign_ray.monitoring.grafana import dashboard

    out.print(json.dumps(dashboard(), indent=1), markup=False, highlight=False, soft_wrap=True)
