"""Foreign checkpoints: where they come from, what bytes are refused, and how their weights fit a network of ours."""
