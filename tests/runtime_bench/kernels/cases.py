"""Inputs for every kernel: sizes below, at and above the block sizes, random and adversarial.

Each function yields (label, arguments); the outputs are in the arguments, filled with a byte that no kernel
writes by chance, and every output stands between guard zones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

Arguments = dict[str, Any]
Case = tuple[str, Arguments]

FILLER = 0xA5
_GUARD = 64
CHANNELS = [1, 31, 32, 33, 63, 64, 65, 96, 127, 128, 129, 255, 256, 257, 511, 512, 513]
OUTPUTS = [1, 7, 8, 31, 32, 33, 64, 65]


def words(channels: int) -> int:
    return -(-channels // 32)


def output(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """An array of `FILLER` bytes with `FILLER` bytes around it; `guards_are_whole` checks those."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    block = np.full(size + 2 * _GUARD, FILLER, np.uint8)
    return block[_GUARD : _GUARD + size].view(dtype).reshape(shape)


def guards_are_whole(array: np.ndarray) -> bool:
    base = array
    while base.base is not None:
        base = base.base
    return bool((base[:_GUARD] == FILLER).all() and (base[-_GUARD:] == FILLER).all())


def fresh(arguments: Arguments, outputs: list[str]) -> Arguments:
    """The same arguments with new outputs."""
    return {
        name: output(value.shape, value.dtype.type) if name in outputs and value is not None else value
        for name, value in arguments.items()
    }


def pack(signs: np.ndarray) -> np.ndarray:
    """+-1 `[..., C]` -> packed int32 `[..., ceil(C/32)]`."""
    bits = np.packbits(signs < 0, axis=-1, bitorder="little")
    padding = [(0, 0)] * (bits.ndim - 1) + [(0, 4 * words(signs.shape[-1]) - bits.shape[-1])]
    return np.ascontiguousarray(np.pad(bits, padding)).view(np.int32)


def signs(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(0, 2, shape, dtype=np.int8) * 2 - 1


def codes(rng: np.random.Generator, batch: int, nodes: int, channels: int, kind: str) -> np.ndarray:
    """Signs `[batch, nodes, channels]`: "random"; "equal" rows; "few" different rows; "far": each row alone at the
    same distance from all others (one channel set, as far as there are channels)."""
    if kind == "random":
        return signs(rng, batch, nodes, channels)
    if kind == "equal":
        return np.repeat(signs(rng, batch, 1, channels), nodes, axis=1)
    if kind == "few":
        return np.take_along_axis(signs(rng, batch, 3, channels), rng.integers(0, 3, (batch, nodes, 1)), axis=1)
    assert kind == "far"
    x = np.ones((batch, nodes, channels), np.int8)
    n = np.arange(min(nodes, channels))
    x[:, n, n] = -1
    return x


def floats(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def lists(rng: np.random.Generator, batch: int, rows: int, nodes: int, k: int, own: bool) -> np.ndarray:
    """Neighbour lists with repetitions; with `own` each row's first neighbour is itself."""
    index = rng.integers(0, nodes, (batch, rows, k), dtype=np.int32)
    if own:
        index[:, :, 0] = np.arange(rows) % nodes
    return index


def hamming_knn(rng: np.random.Generator) -> Iterator[Case]:
    shapes = [(1, 1, c, 1) for c in (1, 64, 512)]
    shapes += [(2, 50, c, 7) for c in CHANNELS]
    shapes += [(1, n, 64, min(n, 20)) for n in (2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200, 1023, 1024, 1025)]
    shapes += [
        (1, 300, c, k) for c in (64, 128, 300) for k in (1, 2, 16, 17, 20, 24, 25, 32, 33, 48, 49, 64, 65, 299, 300)
    ]
    shapes += [(1, 2100, 64, 20), (1, 1024, 2048, 20), (1, 40, 5000, 20)]
    shapes += [(1, 4095, 32, 5), (1, 4096, 8, 64), (1, 4096, 8, 65), (1, 4097, 96, 1)]  # around streaming
    for batch, nodes, channels, k in shapes:
        for kind in ("random", "equal", "few", "far"):
            x = pack(codes(rng, batch, nodes, channels, kind))
            yield (
                f"{kind} B{batch} N{nodes} C{channels} k{k}",
                {
                    "x": x,
                    "neighbours": output((batch, nodes, k), np.int32),
                    "batch": batch,
                    "nodes": nodes,
                    "words": words(channels),
                    "k": k,
                },
            )


def knn(rng: np.random.Generator) -> Iterator[Case]:
    shapes = [(1, 1, 3, 1), (2, 50, 1, 7), (2, 50, 2, 50), (1, 100, 65, 20)]
    shapes += [(1, n, 3, min(n, 20)) for n in (2, 15, 16, 17, 63, 64, 65, 129, 200, 1023, 1024, 1025, 2100)]
    shapes += [(1, 300, c, k) for c in (3, 8) for k in (1, 2, 16, 17, 20, 24, 25, 31, 32, 33, 48, 49, 64, 65, 299, 300)]
    shapes += [(1, 300, c, 20) for c in (11, 12, 13, 14, 15, 16, 17, 63, 64, 65, 128)]  # around filtering
    shapes += [(2, n, 64, min(n, k)) for n in (1, 15, 17, 33, 64, 130) for k in (1, 24, 25, 48, 49)]
    for batch, nodes, channels, k in shapes:
        random = floats(rng, batch, nodes, channels)
        kinds = {
            "random": random,
            "equal": np.repeat(random[:, :1], nodes, axis=1),
            "grid": rng.integers(0, 3, random.shape).astype(np.float32),
            "shifted": random + np.float32(1000),
            "clusters": np.round(random) * np.float32(100) + np.float32(1e-3) * floats(rng, *random.shape),
            "huge": random * np.float32(1e18),
            "tiny": random * np.float32(1e-21),
            "line": np.broadcast_to(np.arange(nodes, 0, -1, dtype=np.float32)[:, None], random.shape).copy(),
            "special": np.where(
                rng.random(random.shape) < 0.1,
                rng.choice(np.float32([np.nan, np.inf, -np.inf, 1e30, 1e-30, -0.0]), random.shape),
                random,
            ),
        }
        for kind, x in kinds.items():
            yield (
                f"{kind} B{batch} N{nodes} C{channels} k{k}",
                {
                    "x": x,
                    "neighbours": output((batch, nodes, k), np.int32),
                    "batch": batch,
                    "nodes": nodes,
                    "channels": channels,
                    "k": k,
                },
            )


def xor_edge_conv(rng: np.random.Generator) -> Iterator[Case]:
    shapes = [(1, 1, 1, 1, 1, 1)]
    shapes += [(2, 20, c, 5, 33, t) for c in CHANNELS for t in (1, 2, 3, 4)]
    shapes += [(1, 30, 64, 20, o, t) for o in OUTPUTS for t in (1, 2)]
    shapes += [(2, 70, 128, k, 64, t) for k in (1, 2, 3, 4, 5, 19, 20, 21) for t in (1, 2)]
    for batch, nodes, channels, k, outputs, tables in shapes:
        for kind in ("random", "equal", "few"):
            x = codes(rng, batch, nodes, channels, kind)
            weights = np.concatenate(
                [pack(signs(rng, outputs, channels)), pack(signs(rng, outputs, channels))], axis=-1
            )
            thresholds = rng.normal(channels, channels**0.5, (tables, outputs)).astype(np.int32)
            extreme = rng.random(thresholds.shape) < 0.05
            thresholds[extreme] = rng.choice([-(2**31), 2**31 - 1, -1, 0, 2 * channels], extreme.sum())
            if kind != "random":  # so that the bits depend on the data
                thresholds -= rng.integers(0, 2, thresholds.shape, dtype=np.int32) * (thresholds > 0)
            yield (
                f"{kind} B{batch} N{nodes} C{channels} k{k} O{outputs} T{tables}",
                {
                    "x": pack(x),
                    "neighbours": lists(rng, batch, nodes, nodes, k, own=bool(rng.integers(0, 2))),
                    "weights": np.ascontiguousarray(weights),
                    "thresholds": thresholds,
                    "out": output((batch, nodes, words(outputs)), np.int32),
                    "batch": batch,
                    "nodes": nodes,
                    "words": words(channels),
                    "k": k,
                    "out_channels": outputs,
                    "tables": tables,
                },
            )


def gather_max(rng: np.random.Generator) -> Iterator[Case]:
    for channels in (1, 3, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200):
        for rows, nodes, k in ((1, 1, 1), (9, 7, 1), (30, 50, 20)):
            x = floats(rng, 2, nodes, channels)
            x[rng.random(x.shape) < 0.05] = np.nan
            x[rng.random(x.shape) < 0.2] = -0.0
            x[rng.random(x.shape) < 0.2] = 0.0
            yield (
                f"M{rows} N{nodes} C{channels} k{k}",
                {
                    "x": x,
                    "neighbours": lists(rng, 2, rows, nodes, k, own=False),
                    "out": output((2, rows, channels), np.float32),
                    "batch": 2,
                    "nodes": nodes,
                    "rows": rows,
                    "channels": channels,
                    "k": k,
                },
            )


def bin_edge_conv(rng: np.random.Generator) -> Iterator[Case]:
    shapes = [(1, 1, 1, 1, 1)] + [(2, 20, c, 5, 33) for c in CHANNELS] + [(1, 30, 64, 20, o) for o in OUTPUTS]
    shapes += [(1, 30, 64, k, 64) for k in (1, 2, 3, 4, 5)]
    for batch, nodes, channels, k, outputs in shapes:
        for full in (False, True):
            x = floats(rng, batch, nodes, channels)
            yield (
                f"B{batch} N{nodes} C{channels} k{k} O{outputs} {'vectors' if full else 'scalars'}",
                {
                    "node_bits": pack(signs(rng, batch, nodes, channels)),
                    "x": x,
                    "neighbours": lists(rng, batch, nodes, nodes, k, own=True),
                    "edge_scale": floats(rng, channels),
                    "edge_shift": np.where(rng.random(channels) < 0.3, 0, floats(rng, channels)).astype(np.float32),
                    "weights": np.concatenate(
                        [pack(signs(rng, outputs, channels)), pack(signs(rng, outputs, channels))], axis=-1
                    ),
                    "alpha": floats(rng, outputs),
                    "beta": floats(rng, nodes if full else 1),
                    "gamma": floats(rng, k if full else 1),
                    "slope": floats(rng, outputs if full else 1),
                    "out": output((batch, nodes, outputs), np.float32),
                    "batch": batch,
                    "nodes": nodes,
                    "channels": channels,
                    "words": words(channels),
                    "k": k,
                    "out_channels": outputs,
                    "betas": nodes if full else 1,
                    "gammas": k if full else 1,
                    "slopes": outputs if full else 1,
                },
            )


def dense_pool(rng: np.random.Generator) -> Iterator[Case]:
    shapes = [(1, 1, 1, 1)] + [(2, 21, c, 40) for c in [*CHANNELS, 1024, 5000]]
    shapes += [(1, 30, 512, o) for o in OUTPUTS]
    shapes += [(1, n, c, 33) for c in (64, 512) for n in (1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 1000)]
    shapes += [(1, 3, 70000, 3), (1, 20000, 800, 3)]
    for batch, nodes, channels, outputs in shapes:
        for kind in ("random", "opposite"):
            weights = signs(rng, outputs, channels)
            x = signs(rng, batch, nodes, channels)
            if kind == "opposite":  # every count is at an end of its range
                weights[:] = weights[0]
                x[:] = weights[0] * signs(rng, batch, nodes, 1)
            yield (
                f"{kind} B{batch} N{nodes} C{channels} O{outputs}",
                {
                    "x": pack(x),
                    "weights": pack(weights),
                    "out": output((batch, 4, outputs), np.float32),
                    "batch": batch,
                    "nodes": nodes,
                    "words": words(channels),
                    "channels": channels,
                    "out_channels": outputs,
                },
            )


def edge_max(rng: np.random.Generator) -> Iterator[Case]:
    for channels in (1, 3, 15, 16, 17, 63, 64, 65, 127, 128, 129, 200):
        for nodes, k, full in ((1, 1, True), (7, 1, False), (30, 20, True), (30, 5, False)):
            yield (
                f"N{nodes} C{channels} k{k} {'vectors' if full else 'scalars'}",
                {
                    "x": floats(rng, 2, nodes, channels),
                    "node": floats(rng, 2, nodes, channels),
                    "neighbours": lists(rng, 2, nodes, nodes, k, own=False),
                    "beta": floats(rng, nodes if full else 1),
                    "gamma": floats(rng, k if full else 1),
                    "out": output((2, nodes, channels), np.float32),
                    "batch": 2,
                    "nodes": nodes,
                    "channels": channels,
                    "k": k,
                    "betas": nodes if full else 1,
                    "gammas": k if full else 1,
                },
            )


def scaled_pool(rng: np.random.Generator) -> Iterator[Case]:
    shapes = [(1, 1, 1, 1)] + [(2, 21, c, 40) for c in [*CHANNELS, 1024, 5000]]
    shapes += [(1, 30, 512, o) for o in OUTPUTS] + [(1, n, 512, 33) for n in (1, 2, 3, 4, 5, 63, 64, 65, 1000)]
    for number, (batch, nodes, channels, outputs) in enumerate(shapes):
        scales = nodes if number % 4 else 1
        yield (
            f"B{batch} N{nodes} C{channels} O{outputs} {scales} factors",
            {
                "x": pack(signs(rng, batch, nodes, channels)),
                "weights": pack(signs(rng, outputs, channels)),
                "scale": floats(rng, scales),
                "out": output((batch, 4, outputs), np.float32),
                "batch": batch,
                "nodes": nodes,
                "words": words(channels),
                "channels": channels,
                "out_channels": outputs,
                "scales": scales,
            },
        )


def quantize(rng: np.random.Generator) -> Iterator[Case]:
    for channels in CHANNELS:
        x = floats(rng, 5, channels)
        pool = np.float32([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, -1e-45])
        x = np.where(rng.random(x.shape) < 0.3, rng.choice(pool, x.shape), x)
        yield (
            f"C{channels}",
            {"x": x, "out": output((5, words(channels)), np.int32), "rows": 5, "channels": channels},
        )


def quantize_int8(rng: np.random.Generator) -> Iterator[Case]:
    for channels in CHANNELS:
        for zero_point in (-128, -3, 0, 1, 127):
            yield (
                f"C{channels} zero {zero_point}",
                {
                    "x": rng.integers(-128, 128, (5, channels), dtype=np.int8),
                    "out": output((5, words(channels)), np.int32),
                    "rows": 5,
                    "channels": channels,
                    "zero_point": zero_point,
                },
            )


def dequantize(rng: np.random.Generator) -> Iterator[Case]:
    for channels in CHANNELS:
        yield (
            f"C{channels}",
            {
                "x": pack(signs(rng, 5, channels)),
                "out": output((5, channels), np.float32),
                "rows": 5,
                "channels": channels,
            },
        )


def dequantize_int8(rng: np.random.Generator) -> Iterator[Case]:
    for channels in CHANNELS:
        yield (
            f"C{channels}",
            {
                "x": pack(signs(rng, 5, channels)),
                "out": output((5, channels), np.int8),
                "rows": 5,
                "channels": channels,
                "plus": 1,
                "minus": -1 if channels % 2 else 0,
            },
        )


def bconv2d(rng: np.random.Generator) -> Iterator[Case]:
    # height, width, channels of a group, groups, outputs, filter, stride, dilation, pad
    shapes = [(1, 1, c, 1, 33, (1, 1), (1, 1), (1, 1), (0, 0)) for c in CHANNELS]
    shapes += [(1, 5, 64, 1, o, (1, 1), (1, 1), (1, 1), (0, 0)) for o in OUTPUTS]
    shapes += [(1, n, 512, 1, 40, (1, 1), (1, 1), (1, 1), (0, 0)) for n in (15, 16, 17, 33)]
    shapes += [(6, 7, 32, 1, 9, (3, 3), (1, 1), (1, 1), (1, 1)), (6, 7, 40, 1, 34, (3, 2), (2, 1), (1, 2), (1, 1))]
    shapes += [(9, 4, 6, 1, 5, (2, 3), (1, 2), (3, 1), (2, 0)), (3, 3, 64, 2, 10, (3, 3), (1, 1), (1, 1), (1, 1))]
    shapes += [(4, 4, 32, 3, 33, (1, 1), (2, 2), (1, 1), (0, 0)), (1, 1, 64, 1, 8, (3, 3), (1, 1), (1, 1), (1, 1))]
    clamps = [(-(2**31), 2**31 - 1), (0, 2**31 - 1), (-1, 1), (0, 6)]
    for height, width, channels, groups, outputs, filter_, stride, dilation, pad in shapes:
        for bits in (False, True):
            for pad_one in (1, 0):
                if bits and not pad_one and channels % 2:
                    continue
                reach = [(f - 1) * d + 1 for f, d in zip(filter_, dilation, strict=True)]
                out = [
                    (size + 2 * p - r) // s + 1
                    for size, p, r, s in zip((height, width), pad, reach, stride, strict=True)
                ]
                inputs = filter_[0] * filter_[1] * channels
                low, high = clamps[int(rng.integers(0, len(clamps)))]
                x = np.concatenate([pack(signs(rng, 2, height, width, channels)) for _ in range(groups)], axis=-1)
                yield (
                    f"{height}x{width} C{channels}x{groups} O{outputs} f{filter_} s{stride} d{dilation} p{pad} "
                    f"{'bits' if bits else f'float [{low}, {high}]'} pad {pad_one}",
                    {
                        "x": x,
                        "weights": pack(signs(rng, outputs, *filter_, channels)),
                        "multiplier": None if bits else floats(rng, outputs),
                        "bias": None if bits else floats(rng, outputs),
                        "thresholds": rng.normal(inputs / 2, inputs**0.5 / 2, outputs).astype(np.int32)
                        if bits
                        else None,
                        "out": None if bits else output((2, *out, outputs), np.float32),
                        "out_bits": output((2, *out, words(outputs)), np.int32) if bits else None,
                        "batch": 2,
                        "height": height,
                        "width": width,
                        "words": words(channels),
                        "channels": channels,
                        "groups": groups,
                        "out_channels": outputs,
                        "out_height": out[0],
                        "out_width": out[1],
                        "filter_height": filter_[0],
                        "filter_width": filter_[1],
                        "stride_height": stride[0],
                        "stride_width": stride[1],
                        "dilation_height": dilation[0],
                        "dilation_width": dilation[1],
                        "pad_top": pad[0],
                        "pad_left": pad[1],
                        "pad_one": pad_one,
                        "clamp_min": low,
                        "clamp_max": high,
                    },
                )


def bmaxpool2d(rng: np.random.Generator) -> Iterator[Case]:
    for count in (1, 2, 3, 5, 8, 9, 16, 17):
        for filter_, stride, pad in (((1, 1), (1, 1), (0, 0)), ((2, 3), (2, 1), (1, 1)), ((1, 5), (1, 5), (0, 0))):
            out = [(size + 2 * p - f) // s + 1 for size, p, f, s in zip((6, 5), pad, filter_, stride, strict=True)]
            yield (
                f"W{count} f{filter_} s{stride} p{pad}",
                {
                    "x": rng.integers(-(2**31), 2**31, (2, 6, 5, count), dtype=np.int32),
                    "out": output((2, *out, count), np.int32),
                    "batch": 2,
                    "height": 6,
                    "width": 5,
                    "words": count,
                    "out_height": out[0],
                    "out_width": out[1],
                    "filter_height": filter_[0],
                    "filter_width": filter_[1],
                    "stride_height": stride[0],
                    "stride_width": stride[1],
                    "pad_top": pad[0],
                    "pad_left": pad[1],
                },
            )


CASES: dict[str, Callable[[np.random.Generator], Iterator[Case]]] = {
    "hamming_knn": hamming_knn,
    "hamming_far": hamming_knn,
    "knn": knn,
    "xor_edge_conv": xor_edge_conv,
    "gather_max": gather_max,
    "bin_edge_conv": bin_edge_conv,
    "dense_pool": dense_pool,
    "edge_max": edge_max,
    "scaled_pool": scaled_pool,
    "quantize": quantize,
    "quantize_int8": quantize_int8,
    "dequantize": dequantize,
    "dequantize_int8": dequantize_int8,
    "bconv2d": bconv2d,
    "bmaxpool2d": bmaxpool2d,
}


def cases(name: str) -> Iterator[Case]:
    """The cases of kernel `name`, the same at each call."""
    return CASES[name](np.random.default_rng(0))
