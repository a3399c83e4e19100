"""From a model and a window to a recipe, and from that to a restored model with a verdict."""
