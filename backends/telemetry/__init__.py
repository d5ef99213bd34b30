"""Spans and metrics of OpenTelemetry, where they are switched on. Nothing of it is imported where they are not."""
