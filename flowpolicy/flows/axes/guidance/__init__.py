"""The guidance axis: how the noise, the velocity or the finished chunk is steered while acting."""

from flowpolicy.flows.axes.guidance.choosing import BestOfN as BestOfN
from flowpolicy.flows.axes.guidance.choosing import Projection as Projection
from flowpolicy.flows.axes.guidance.classifier_free import ClassifierFree as ClassifierFree
from flowpolicy.flows.axes.guidance.classifier_free import ResidualClassifierFree as ResidualClassifierFree
from flowpolicy.flows.axes.guidance.composition import Compose as Compose
from flowpolicy.flows.axes.guidance.method import Aimed as Aimed
from flowpolicy.flows.axes.guidance.method import Fields as Fields
from flowpolicy.flows.axes.guidance.method import Guidance as Guidance
from flowpolicy.flows.axes.guidance.method import NoGuidance as NoGuidance
from flowpolicy.flows.axes.guidance.method import Situation as Situation
from flowpolicy.flows.axes.guidance.noise_optimisation import NoiseOptimisation as NoiseOptimisation
from flowpolicy.flows.axes.guidance.steering import Gradient as Gradient
from flowpolicy.flows.axes.guidance.steering import Steering as Steering
from flowpolicy.flows.axes.guidance.steering import TrajectoryBlend as TrajectoryBlend
