"""Metrics for people who watch many runs: their Prometheus names, and a Grafana dashboard of them."""
