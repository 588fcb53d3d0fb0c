from matplotlib.image import imread

from flowpolicy.evaluate.methods_figure import draw_methods
from flowpolicy.evaluate.plan import make_plan
from flowpolicy.evaluate.report import make_evaluation
from flowpolicy.evaluate.rollout import rollout
from flowpolicy.evaluate.tables import Method

from .fakes import ChaosEnv, NetworkPolicy


def test_one_row_per_method(tmp_path):
    plan = make_plan("fake/Chaos", 4, 0)
    methods = [
        Method(name, make_evaluation(plan, rollout(NetworkPolicy(nfe=nfe), ChaosEnv(2), plan)), 60.0, 1000)
        for name, nfe in (("dm1", 1), ("flow_bc", 4))
    ]
    draw_methods(methods, "Chaos", tmp_path / "two.png")
    draw_methods(methods * 3, "Chaos", tmp_path / "six.png")
    two, six = (imread(tmp_path / name) for name in ("two.png", "six.png"))
    assert two.std() > 0.05
    assert six.shape[0] > two.shape[0]
