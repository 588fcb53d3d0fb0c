"""From chunks to one guarded reference, 250 times a second: state machine, watchdogs, rings in shared memory."""
