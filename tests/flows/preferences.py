"""The Plackett-Luce loss in best-first order, and gradients in the scores."""

import torch

from flowpolicy.flows import group_objectives as groups


def order_of(rewards):
    return groups.ranking(rewards, torch.zeros_like(rewards))


def plackett_luce(scores, rewards, temperature, order=None):
    order = order_of(rewards) if order is None else order
    return groups.plackett_luce(scores, rewards, temperature, order)


def gradient(loss, scores):
    scores = scores.clone().requires_grad_()
    return torch.autograd.grad(loss(scores).sum(), scores)[0]
