"""Objects, queues, job records and manifests: all durable state of a run. No Beam here but in objects/r2_filesystem."""
