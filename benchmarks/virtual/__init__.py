"""Ranks run one after the other on one GPU: kernels measured, the network modelled."""
