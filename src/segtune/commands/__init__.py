"""The commands of the command line, a module for each group. They import torch and its kin only when they run."""
