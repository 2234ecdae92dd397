"""HTTP of this room: config bundles and deployments."""
