"""The solver axis: how the noise is carried to the data on a grid of times."""

from flowpolicy.flows.axes.solvers.correctors import Corrector as Corrector
from flowpolicy.flows.axes.solvers.correctors import Heun as Heun
from flowpolicy.flows.axes.solvers.correctors import Plan as Plan
from flowpolicy.flows.axes.solvers.correctors import PseudoCorrector as PseudoCorrector
from flowpolicy.flows.axes.solvers.denoising import Ddim as Ddim
from flowpolicy.flows.axes.solvers.denoising import FixedNoise as FixedNoise
from flowpolicy.flows.axes.solvers.explicit import AdamsBashforth as AdamsBashforth
from flowpolicy.flows.axes.solvers.explicit import Afp as Afp
from flowpolicy.flows.axes.solvers.explicit import Euler as Euler
from flowpolicy.flows.axes.solvers.explicit import Midpoint as Midpoint
from flowpolicy.flows.axes.solvers.fitted import Fitted as Fitted
from flowpolicy.flows.axes.solvers.jumps import MapJumps as MapJumps
from flowpolicy.flows.axes.solvers.jumps import SelfIntegration as SelfIntegration
from flowpolicy.flows.axes.solvers.solver import Dynamics as Dynamics
from flowpolicy.flows.axes.solvers.solver import Solver as Solver
from flowpolicy.flows.axes.solvers.solver import Times as Times
from flowpolicy.flows.axes.solvers.stochastic import Stochastic as Stochastic
