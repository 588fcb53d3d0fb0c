from matplotlib.image import imread

from flowpolicy.evaluate.methods_figure import draw_methods
from flowpolicy.evaluate.plan import make_plan
from flowpolicy.evaluate.report import make_evaluation
from flowpolicy.evaluate.rollout import rollout

from .fakes import ChaosEnv, NetworkPolicy


def test_one_row_per_method(tmp_path):
    plan = make_plan("fake/Chaos", 4, 0)
    methods = {
        f"flow, {nfe} steps": make_evaluation(plan, rollout(NetworkPolicy(nfe=nfe), ChaosEnv(2), plan))
        for nfe in (1, 2, 4)
    }
    draw_methods(methods, "Chaos", tmp_path / "three.png")
    draw_methods(dict(list(methods.items())[:1]), "Chaos", tmp_path / "one.png")
    one, three = (imread(tmp_path / name) for name in ("one.png", "three.png"))
    assert three.std() > 0.05
    assert three.shape[0] > one.shape[0]
