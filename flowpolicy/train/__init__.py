"""The only training loop, exact save and resume, loggers."""
