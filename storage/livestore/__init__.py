"""LiveStore's sync protocol: event logs of apps, read and appended to as one of their clients."""
