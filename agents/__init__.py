"""One file per algorithm: frozen config, losses, update. The rooms are families; ``base`` is what they share."""
