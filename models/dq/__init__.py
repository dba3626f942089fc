"""Degree-Quant (Tailor, Fernandez-Marques, Lane, ICLR 2021): quantisation-aware training of graph networks."""

from bgnn.models.dq.networks import DegreeQuantNet, Settings, build
from bgnn.models.dq.quantizer import Quantizer, Scheme

__all__ = ["DegreeQuantNet", "Quantizer", "Scheme", "Settings", "build"]
