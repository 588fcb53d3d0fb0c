"""The processes of a session and their owner: launch, bridge, policy, recorder, cameras, console, checks."""
