"""What every op is, once: passes, specs and docs/ops.md ask here and keep no lists of their own.

A *trait* is a fact about an op that holds whatever graph it stands in. Whether a target can write an op is its
emitter's to say (`LOWERINGS` of converter/onnx and converter/tflite); nothing here repeats it.

    elementwise   each element of the result from the same element of its operands (broadcast)
      one         of one tensor; all else are numbers
      two         of two operands
      rising      never falls in its tensor: may change places with a maximum
      gentle      its slope is at most 1, or nearly so: errors do not grow in it
      rounds      whole numbers come out
      compares    booleans come out
      same        the tensor itself
    channel       elementwise, with a constant for each channel
    reduction     over axes that are named
    running       up to each element along an axis
    written       by a tensor of indices
      extremum    that picks one of the elements
    softmax       along one axis
    move          elements change their places, and nothing else
      lookup      by a tensor of indices
    filling       one number, whatever its operands hold
    size          of sizes, which are no tensors
    dense         a product with a matrix; MACs are rows x inputs x outputs
    segment       over the edges of each node, or the nodes of each graph
      sum         a segment's sum or mean, which grows with the number of edges
    loops         a graph's self-loops
    table         which edges each node has, how many, and the edges' order by node
    codes         8-bit integers go in, or come out
      summed      along an axis
    fake          goes to codes and back
    bits          packed signs go in, or come out
    fused         several of the user's operations in one of this project's operators
    search        finds neighbours
    spelling      another spelling of those above, as torch.export gives it: a pass looks for it
    alone         no pass takes it together with what stands before or behind it
    owed          stands for what the model means: a pass (OWED_BY) writes it with what targets have
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import torch

import bgnn.converter.dialect
import bgnn.converter.dialect_int8

aten = torch.ops.aten
bgnn = torch.ops.bgnn

TRAITS: list[tuple[str, list[Any]]] = [
    ("elementwise one rising gentle", [aten.relu, aten.relu6, aten.tanh, aten.sigmoid, aten.clamp, aten.clamp_min,
                                       aten.clamp_max, aten.hardtanh, aten.softplus]),
    ("elementwise one rising", [aten.exp, aten.sqrt, aten.log]),
    ("elementwise one gentle", [aten.neg, aten.abs, aten.leaky_relu, aten.elu, aten.gelu, aten.silu]),
    ("elementwise one gentle", [aten.sin, aten.cos, aten.erf, aten.atan]),
    ("elementwise one", [aten.rsqrt, aten.reciprocal, aten.square, aten.pow]),
    ("channel gentle", [aten.prelu, bgnn.prelu]),
    ("channel owed", [bgnn.batch_norm]),
    ("elementwise one rounds rising", [aten.round, aten.floor, aten.ceil, aten.trunc, aten.fix]),
    ("elementwise one rounds rising", [aten.sign, aten.sgn, aten.sgn_, aten.heaviside]),
    ("elementwise one rounds rising owed", [bgnn.binarize]),
    ("elementwise one", [aten.signbit, aten.logical_not, aten.bitwise_not, aten._to_copy, aten.to, aten.type_as]),
    ("elementwise one same", [aten.clone, aten.contiguous, aten.alias, aten.detach, aten.detach_, aten.lift_fresh,
                              aten.lift_fresh_copy, aten.dropout, aten.feature_dropout, aten.alpha_dropout]),
    ("elementwise two", [aten.add, aten.sub, aten.rsub, aten.mul, aten.div, aten.maximum, aten.minimum, aten.copysign]),
    ("elementwise two compares", [aten.ge, aten.gt, aten.le, aten.lt, aten.eq, aten.ne]),
    ("elementwise two", [aten.logical_and, aten.logical_or, aten.logical_xor, aten.bitwise_and, aten.bitwise_or,
                         aten.bitwise_xor, aten.__and__, aten.__or__, aten.__xor__]),
    ("elementwise", [aten.where, aten.masked_fill]),
    ("elementwise one filling", [aten.zeros_like, aten.ones_like, aten.full_like]),
    ("filling", [aten.full, aten.ones, aten.zeros, aten.new_full, aten.new_ones, aten.new_zeros]),
    ("reduction extremum", [aten.amax, aten.amin]),
    ("reduction", [aten.mean, aten.sum]),
    ("softmax", [aten.softmax, aten.log_softmax, aten._softmax, aten._log_softmax]),
    ("move one", [aten.reshape, aten.permute, aten.expand, aten.slice, aten.select, aten.view, aten._unsafe_view,
                  aten.flatten, aten.unsqueeze, aten.squeeze, aten.transpose, aten.t, aten.repeat, aten.flip,
                  aten.roll]),
    ("move", [aten.cat, aten.unbind]),
    ("move lookup one", [aten.index_select, bgnn.gather_nodes]),
    ("move lookup", [aten.index, aten.gather, aten.embedding]),
    ("running alone", [aten.cumsum]),
    ("written", [aten.index_put]),
    ("size", [aten.sym_size, aten._local_scalar_dense, aten.arange, operator.add, operator.sub, operator.mul,
              operator.floordiv, operator.truediv, operator.pow, torch.sym_min, torch.sym_max, torch.sym_float,
              torch.sym_sqrt]),
    ("dense", [aten.linear, aten.matmul, aten.bmm, aten.mm, aten.addmm]),
    ("dense owed", [aten.conv1d, aten.conv2d]),
    ("segment sum", [bgnn.segment_sum, bgnn.segment_mean]),
    ("segment", [bgnn.segment_max, bgnn.segment_softmax]),
    ("segment sum codes", [bgnn.q_segment_sum, bgnn.q_segment_sum_float, bgnn.q_segment_mean]),
    ("segment codes", [bgnn.q_segment_max]),
    ("loops", [bgnn.with_self_loops, bgnn.drop_loops, bgnn.loop_rows, bgnn.join_edges]),
    ("table", [bgnn.neighbour_table, bgnn.degrees, bgnn.edge_order, bgnn.edge_places, bgnn.edge_list, bgnn.edge_csr,
               bgnn.edge_product]),
    ("fake", [bgnn.fake_quant, bgnn.fake_quant_channel]),
    ("codes", [bgnn.quantize, bgnn.dequantize, bgnn.requantize, bgnn.q_linear, bgnn.q_linear_float, bgnn.q_mul,
               bgnn.q_add, bgnn.q_table]),
    ("codes summed", [bgnn.q_sum, bgnn.q_sum_float]),
    ("bits", [bgnn.pack, bgnn.unpack, bgnn.bconv, bgnn.bconv_bits, bgnn.packed_max]),
    ("bits fused", [bgnn.xor_edge_conv, bgnn.bin_edge_conv, bgnn.dense_pool]),
    ("segment sum fused", [bgnn.aggregate, bgnn.gat_aggregate]),
    ("segment sum fused codes", [bgnn.q_aggregate, bgnn.q_gat_aggregate]),
    ("fused", [bgnn.gather_max, bgnn.edge_max]),
    ("search", [bgnn.topk_lowest, operator.getitem]),
    ("search fused", [bgnn.hamming_knn, bgnn.real_knn]),
    ("search owed", [bgnn.knn, aten.cdist]),
    ("spelling alone", [
        aten._adaptive_avg_pool2d, aten.adaptive_avg_pool1d, aten.adaptive_avg_pool2d, aten.adaptive_max_pool1d,
        aten.adaptive_max_pool2d, aten.avg_pool1d, aten.avg_pool2d, aten.max_pool1d, aten.max_pool2d,
        aten.max_pool1d_with_indices, aten.max_pool2d_with_indices,
    ]),
    ("spelling", [
        aten.celu, aten.log_sigmoid, aten.group_norm, aten.instance_norm, aten.scaled_dot_product_attention, aten.eye,
        aten._native_batch_norm_legit_no_training,
        aten._native_batch_norm_legit, aten._native_batch_norm_legit_functional, aten.any, aten.all,
        aten.slice_scatter, aten.select_scatter, aten.diagonal, aten.diagonal_scatter, aten.as_strided,
        aten.as_strided_scatter,
        aten.batch_norm, aten.layer_norm, aten.std, aten.var, aten.norm, aten.linalg_vector_norm, aten.aminmax,
        aten.argmax, aten.argmin, aten.argsort, aten.max, aten.median, aten.min, aten.sort, aten.topk, aten.stack,
        aten.split, aten.split_with_sizes, aten.tensor_split, aten.chunk, aten.tile, aten.unflatten, aten.movedim,
        aten.swapaxes, aten.numpy_T, aten.mT, aten.broadcast_to, aten.expand_as, aten.reshape_as, aten.view_as,
        aten.copy, aten.one_hot, aten.index_add, aten.index_put, aten.index_reduce, aten.scatter, aten.scatter_add,
        aten.scatter_reduce, aten.floor_divide, aten.atan2, aten.fmod, aten.frac, aten.remainder, aten.log1p,
        aten.fake_quantize_per_channel_affine, aten.fake_quantize_per_channel_affine_cachemask,
        aten.fake_quantize_per_tensor_affine, aten.fake_quantize_per_tensor_affine_cachemask,
        aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams, aten._fused_moving_avg_obs_fq_helper,
        aten._fused_moving_avg_obs_fq_helper_functional,
    ]),
    ("bits owed", [bgnn.dot_threshold, bgnn.xor_edge_layer, bgnn.bin_edge_layer, bgnn.dense_pool_layer]),
]  # fmt: skip

# The passes that write what is owed; batch_norm of a layer is folded before, and what is left is legalise's.
OWED_BY = {
    bgnn.binarize: "pack_bits or legalise",
    **dict.fromkeys([bgnn.dot_threshold, bgnn.xor_edge_layer, bgnn.bin_edge_layer, bgnn.dense_pool_layer], "pack_bits"),
    bgnn.batch_norm: "fold_batch_norm or legalise",
    bgnn.knn: "lower_knn",
}


@functools.cache  # passes ask inside their loops
def having(*traits: str) -> tuple[Any, ...]:
    """The ops that have all of these traits, and none of those with a minus: `having("move", "-lookup")`."""
    known = {word for row, _ in TRAITS for word in row.split()}
    assert {trait.lstrip("-") for trait in traits} <= known, f"no such trait among {traits}"
    return tuple(
        op
        for row, ops in TRAITS
        if all((trait.lstrip("-") in row.split()) != trait.startswith("-") for trait in traits)
        for op in ops
    )


def name_of(op: Any) -> str:
    """An op without its overload, as `aten.add`, `bgnn.pack` or, of sizes, `add`."""
    packet = getattr(op, "overloadpacket", op)
    return str(packet) if isinstance(packet, torch._ops.OpOverloadPacket) else str(getattr(op, "__name__", op))
