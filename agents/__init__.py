"""One file per algorithm: frozen config, losses, update."""
