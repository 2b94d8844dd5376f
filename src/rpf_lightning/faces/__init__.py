"""Frozen pretrained networks behind small interfaces, and where their weights are found."""
