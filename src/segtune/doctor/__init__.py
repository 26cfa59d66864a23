"""The doctor: checks of a data set that name what is wrong, and the recipe line that fixes it, before training."""
