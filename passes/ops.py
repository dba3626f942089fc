"""What every op is, once: passes, specs and the documentation ask here and keep no lists of their own.

A *trait* is a fact about an op that some pass needs:

    unary       one tensor, each element by itself (its other operands are numbers)
    binary      two operands, element by element, broadcast
    choice      element by element of three operands, one of them a condition
    compare     element by element, with a boolean result
    rising      unary, and never falling: it may change places with a maximum
    zero        unary, and 0 stays 0: padding may pass through it
    reduction   over axes that are named
    extremum    a reduction that picks one of the elements
    move        elements change their places and nothing else
    filling     a tensor of one number, whatever its operands hold
    dense       a product with a matrix; costs rows x inputs x outputs
    segment     a reduction over the edges of a node, or the nodes of a graph
    codes       8-bit integers come in or go out
    bits        packed signs come in or go out
    search      neighbours
    meaning     stands for what the model means, until a pass lowers it: never in a file
"""

from __future__ import annotations

import operator
from typing import Any

import torch

import bgnn.converter.dialect
import bgnn.converter.dialect_int8

aten = torch.ops.aten
bgnn = torch.ops.bgnn

_ROWS: list[tuple[str, list[Any]]] = [
    ("unary rising zero", [aten.relu, aten.relu6, aten.tanh, aten.sqrt]),
    ("unary rising", [aten.sigmoid, aten.exp, aten.log, aten.softplus, aten.round, aten.floor, aten.ceil]),
    ("unary zero", [aten.neg, aten.abs, aten.leaky_relu, aten.elu, aten.gelu, aten.silu, aten.sign, aten.square]),
    ("unary", [aten.clamp, aten.clamp_min, aten.hardtanh, aten.rsqrt, aten.reciprocal, aten.pow, aten.sin, aten.cos,
               aten.erf, aten.expm1, aten.log1p]),
    ("unary meaning", [bgnn.binarize]),
    ("unary zero", [bgnn.prelu]),
    ("unary meaning", [bgnn.batch_norm]),
    ("unary", [aten._to_copy, aten.to, aten.logical_not]),
    ("binary", [aten.add, aten.sub, aten.rsub, aten.mul, aten.div, aten.maximum, aten.minimum, aten.logical_and,
                aten.logical_or, aten.bitwise_xor]),
    ("compare binary", [aten.ge, aten.gt, aten.le, aten.lt, aten.eq, aten.ne]),
    ("choice", [aten.where, aten.masked_fill]),
    ("reduction extremum", [aten.amax, aten.amin]),
    ("reduction", [aten.mean, aten.sum]),
    ("along", [aten.softmax, aten.log_softmax, aten._softmax, aten._log_softmax]),
    ("move", [aten.reshape, aten.permute, aten.expand, aten.cat, aten.slice, aten.select, aten.index_select]),
    ("move meaning", [bgnn.gather_nodes]),
    ("filling", [aten.full, aten.ones, aten.zeros, aten.new_full, aten.new_ones, aten.new_zeros, aten.full_like,
                 aten.ones_like, aten.zeros_like]),
    ("size", [aten.sym_size, aten.item, aten._local_scalar_dense, aten.arange, operator.add, operator.sub,
              operator.mul, operator.floordiv]),
    ("dense", [aten.linear, aten.matmul, aten.bmm, aten.mm]),
    ("search", [bgnn.topk_lowest, operator.getitem]),
    ("search meaning", [bgnn.knn, aten.cdist]),
    ("segment", [bgnn.segment_sum, bgnn.segment_mean, bgnn.segment_max, bgnn.segment_softmax]),
    ("loops", [bgnn.with_self_loops, bgnn.drop_loops, bgnn.loop_rows]),
]  # fmt: skip
