"""What other systems learn of a command: figures, spans, and whether it is well."""
