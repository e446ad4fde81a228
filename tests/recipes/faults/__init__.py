"""Recipes under every fault of the simulator: what they promise holds under each seed."""
