"""Evaluation plans, seeded rollouts, statistics, video, reports."""
