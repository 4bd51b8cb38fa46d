"""The dashboard and the metrics: what a browser or Prometheus is shown of a run."""
