"""The flow laboratory's experiments: how good each method is, on a toy whose law is known."""
