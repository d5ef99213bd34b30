"""R2's S3 API."""
