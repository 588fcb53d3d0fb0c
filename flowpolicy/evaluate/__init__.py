"""Evaluation plans, seeded rollouts, statistics, video, reports.

Called, it is :func:`flowpolicy.evaluate.evaluation.evaluate`: ``flowpolicy.evaluate(run, episodes=50)``.
"""

from flowpolicy.core.callable_room import make_callable

make_callable(__name__, "flowpolicy.evaluate.evaluation:evaluate")
