"""What every column of ``metrics.csv`` means, in a sentence or two, for people who read curves."""

from __future__ import annotations

WORDS = {
    "loss": "What training minimises: the sum of the losses of all networks. Flow "
    "losses settle at a level, not at zero: "
    "the noise of a sample cannot be predicted. Losses that are scaled by themselves may be negative.",
    "grad_norm": "Length of the gradient before it is clipped. Spikes are hard batches; steady growth is trouble.",
    "lr": "Learning rate: it rises in the warm-up, then follows its schedule.",
    "on_diagonal": "Error of the velocity itself, where both times are equal: plain flow matching.",
    "off_diagonal": "Error of the mean velocity over a span of time, which one evaluation per chunk stands on.",
    "dispersive": "Repulsion between features of different observations. Lower is more spread out.",
    "feature_rank": "How many directions a batch of features uses: 1 is collapse, the feature's size is the most.",
    "feature_distance": "Mean squared distance of two features over their mean squared length: "
    "0 is collapse, 2 is unrelated.",
    "divergence": "Divergence of the velocity field, as estimated from random directions.",
    "first": "Error of the first of two passes: the chunk from nothing.",
    "second": "Error of the second of two passes: the chunk from a blurred chunk.",
    "unrefined": "Error that would be left without refinement: what the loss is to be compared with.",
    "push": "How strongly the student is pushed towards the teacher on its own samples.",
    "fake_loss": "Error of the network that follows what the student makes.",
    "critic_loss": "Error of the critic against its target: reward plus discounted value "
    "of what follows. It grows with the "
    "values; a sudden rise is divergence.",
    "value_loss": "Error of the state's value: expectile regression towards the critic.",
    "actor_loss": "What the acting network minimises: staying near the data, and climbing the critic.",
    "flow_loss": "Flow matching error of the behaviour flow. It settles at a level, not at zero.",
    "decorator_loss": "What the decorator minimises: the critic's climb, the charge for "
    "distance, and what leaves the range.",
    "dual_loss": "Moves the price of distance until the budget is spent, no more and no less.",
    "q_mean": "Mean value that the critic gives to actions of the data.",
    "q_held_out": "The same by a critic that guides no policy. Far below the others, those are being exploited.",
    "q_policy": "Mean value that the critic gives to the policy's own actions.",
    "q_policy_held_out": "The same by a critic that guides no policy. Far below q_policy, the "
    "policy exploits the critic.",
    "target_mean": "Mean target of the critic. Values beyond what rewards allow are divergence.",
    "v_mean": "Mean value of states.",
    "awr_weight": "Mean weight of actions in the actor's loss: of those that beat the state's value.",
    "distill": "Squared distance of the one-step policy to the flow it is distilled from.",
    "distance": "Squared distance of the policy's action to the data's.",
    "meanflow": "Flow-map error of the policy on the data.",
    "overflow": "How far actions leave the range that the environment takes.",
    "charge": "Divergence that the decorator's shifts cost, in the flow's own Fisher "
    "metric; the budget bounds its mean.",
    "weight": "Price of distance, as the dual sets it.",
    "shift_rms": "Size of the decorator's shift, in actions scaled to [-1, 1].",
    "precision": "Scale of the metric, followed over updates.",
    "group_loss": "Preference for better candidates over worse ones in a group.",
    "anchor_loss": "Velocity matching on the best candidate, which keeps it likely.",
    "bc_loss": "Velocity matching on the data.",
    "best_log_ratio": "How much more likely the best candidate became than under the base.",
    "gate": "Share of groups that still teach: in which candidates differ and the policy may move.",
    "reward_gain": "Gain over the base by the judge that gave the training rewards.",
    "held_out_gain": "Gain over the base by a judge that trained nothing.",
    "corrected_gain": "The held-out gain minus the price of leaving what the data support; early stopping goes by it.",
    "hacking_gap": "Reward gain minus held-out gain. Above half of the reward gain, the rewards are being exploited.",
    "unsupported": "Nats by which chunks are less likely under the base than 95 % of the data's.",
    "kl": "Estimated divergence from the base, nats per chunk.",
    "best_corrected": "The best corrected gain so far; the base has 0.",
    "best_update": "The update that had the best corrected gain.",
    "stale": "Assessments since the best one.",
    "data_ms": "Milliseconds an update waits for its batch.",
    "update_ms": "Milliseconds of an update itself. The first row holds the compilation.",
    "log_ms": "Milliseconds an update spends on logging.",
}
"""Metric -> meaning."""

SUFFIXES = ("_grad_norm", "_lr")


def meaning(name: str) -> str:
    """What a metric means; for one that is not known, where it comes from."""
    if name in WORDS:
        return WORDS[name]
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return f"{WORDS[suffix[1:]]} Of the {name.removesuffix(suffix)}."
    if name.endswith("_loss"):
        return f"Loss of the {name.removesuffix('_loss')}."
    return "Logged by the agent; its docstring says what it is."


def title(name: str) -> str:
    """Heading of a metric's chart."""
    return {"lr": "learning rate", "grad_norm": "gradient norm"}.get(name, name.replace("_", " "))
