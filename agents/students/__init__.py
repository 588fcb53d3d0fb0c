"""Students of a trained flow: fewer evaluations per chunk, and the teachers they learn from."""
