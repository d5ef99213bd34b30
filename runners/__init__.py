"""Where a graph runs, and the command line."""

import logging


def _is_wanted(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith("apitools not found")


# Beam warns on import of a library for BigQuery that nothing here uses; this module is imported before Beam.
logging.getLogger().addFilter(_is_wanted)
