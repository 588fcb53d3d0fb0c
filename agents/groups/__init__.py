"""Post-training from groups of scored chunks."""
