"""The twin: a simulated FR3 in MuJoCo that speaks the robot's protocol, and the same scene without sockets."""
