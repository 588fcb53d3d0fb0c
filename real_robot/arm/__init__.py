"""An arm as mathematics: limits, kinematics, braking, the envelope that no motion leaves."""
