"""What the families share: the shape of one update, optimisers, compiled losses, bricks of losses."""
