"""Objects, queues, job records and manifests: all durable state of a run. No Beam here beyond the FileSystem."""
