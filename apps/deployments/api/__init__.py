"""API of config bundles and deployments."""
