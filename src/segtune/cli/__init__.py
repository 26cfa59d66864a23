"""The command line: one module for each group of commands, which import torch and its kin only when they run."""
