"""Numbers of the layers that every implementation of them shares; no torch."""

GELU_SLOPE = 1.5957691216057308
"""2 sqrt(2 / pi), of the tanh form of GELU (Hendrycks and Gimpel 2016, arXiv 1606.08415)."""
GELU_CUBIC = 0.044715
"""Weight of the cube in the same form."""
NORM_EPS = 1e-5
"""Added to variances under the root."""
