"""Studies trained networks: inspection, prediction for image files, and probes."""
