"""The deployable thing: contract, normaliser, network, solver."""

from flowpolicy.policy.policy import Policy as Policy
from flowpolicy.policy.queue import ChunkQueue as ChunkQueue
