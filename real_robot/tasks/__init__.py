"""What the scripted operator demonstrates, and when a task is done."""
