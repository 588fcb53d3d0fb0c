"""One adapter per simulator suite to one vector-environment protocol."""
