"""SegFormer from the paper (Xie et al. 2021, arXiv 2105.15203): configuration, network, image processor."""
