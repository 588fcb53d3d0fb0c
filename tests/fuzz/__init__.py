"""Random damage to every file that a user can hand us: read, or refused in words; see :mod:`tests.fuzz.damage`."""
