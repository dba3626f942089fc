"""Layers: at 32 bits they are PyG's own; quantised, every stage is on its grid; protection is Algorithm 1's."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.nn import GATConv, GCNConv, GINConv, SAGEConv

from bgnn.models.dq.layers import QuantizedGAT, QuantizedGCN, QuantizedGIN, QuantizedLinear, QuantizedSAGE
from bgnn.models.dq.quantizer import Quantizer, Scheme

FLOAT, INT8, INT4 = (Scheme(bits=bits, observer="min_max") for bits in (32, 8, 4))


def graph(seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    edges = torch.randint(20, (2, 60), generator=generator)
    return torch.rand(20, 6, generator=generator), torch.cat((edges, edges[:, :5]), 1)  # duplicates, self-loops


def layers(scheme: Scheme) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    mlp = nn.Sequential(
        QuantizedLinear(6, 8, scheme, signed=False), nn.ReLU(), QuantizedLinear(8, 4, scheme, signed=False)
    )
    made = {
        "gcn": QuantizedGCN(6, 4, scheme),
        "gat": QuantizedGAT(6, 4, scheme, heads=2),
        "gat mean": QuantizedGAT(6, 4, scheme, heads=2, concat=False),
        "gin": QuantizedGIN(mlp, scheme, train_eps=True),
        "sage": QuantizedSAGE(6, 4, scheme),
    }
    for layer in made.values():
        for parameter in layer.parameters():
            nn.init.normal_(parameter, 0, 0.5)
    return made


def twin(name: str, layer) -> nn.Module:
    """PyG's layer with the same weights."""
    if name == "gin":
        other = GINConv(nn.Identity(), eps=layer.eps.item())
        other.nn = layer.nn  # the constructor would reset it
        return other
    if name == "gcn":
        other = GCNConv(6, 4)
        other.lin.weight.data = layer.weight.data.t()
    elif name == "sage":
        other = SAGEConv(6, 4)
        other.lin_l.weight.data, other.lin_l.bias.data = layer.weight.data.t(), layer.bias.data
        other.lin_r.weight.data = layer.root_weight.data.t()
        return other
    else:
        other = GATConv(6, 4, heads=2, concat=layer.concat)
        other.lin.weight.data = layer.weight.data.t()
        other.att_dst.data, other.att_src.data = layer.att.data.split(4, dim=-1)
    other.bias.data = layer.bias.data
    return other


@pytest.mark.parametrize("name", layers(FLOAT))
def test_the_float_twin_is_pygs_layer(name):
    layer = layers(FLOAT)[name]
    torch.testing.assert_close(layer(*graph()), twin(name, layer)(*graph()))


@pytest.mark.parametrize("name", layers(INT8))
def test_eight_bits_are_near_the_float_twin(name):
    layer, exact = layers(INT8)[name], layers(FLOAT)[name]
    layer(*graph())
    want = exact(*graph())
    assert (layer.eval()(*graph()) - want).abs().max() < 0.05 * (want.max() - want.min())
    coarse = layers(INT4)[name]
    coarse(*graph())
    assert (coarse.eval()(*graph()) - want).abs().max() > 2 * (layer(*graph()) - want).abs().max()


@pytest.mark.parametrize("name", layers(INT8))
def test_every_quantiser_sees_data_and_quantises(name):
    layer = layers(INT8)[name]
    seen = {}
    for key, module in layer.named_modules():
        if isinstance(module, Quantizer):
            module.register_forward_hook(lambda m, i, o, key=key: seen.setdefault(key, []).append((m, i[0], o)))
    x, edges = graph()
    layer(x, edges)
    layer.eval()(x, edges)
    names = {key.rsplit(".", 1)[-1] for key in seen}
    assert {"message_low", "aggregate_low", "update_low"} <= names
    if name != "gin":
        assert {"inputs_low", "weights_low"} <= names
    assert {"norm_low"} <= names if name == "gcn" else True
    assert {"attention_low", "alpha_low"} <= names if "gat" in name else True
    for quantiser, _, y in (calls[-1] for calls in seen.values()):
        codes = y / quantiser.affine()[0]
        torch.testing.assert_close(codes, codes.round(), atol=1e-3, rtol=0)
    assert len(seen) == sum(isinstance(m, Quantizer) for m in layer.modules())


def test_a_protected_node_and_its_messages_stay_at_full_precision():
    """All nodes protected: what is left of quantisation is the weights and the norm (Algorithm 1)."""
    layer = layers(INT4)["gcn"]
    x, edges = graph()
    layer(x, edges)
    full = layer(x, edges, torch.ones(20, dtype=torch.bool))
    exact = layers(FLOAT)["gcn"]
    q = layer.layer_quantizers
    exact.weight.data = q["weights_low"](layer.weight).detach()
    exact.layer_quantizers["norm_low"] = q["norm_low"]
    torch.testing.assert_close(full, exact(x, edges))
    assert not torch.allclose(layer(x, edges), full, atol=1e-3)


def test_messages_of_a_protected_source_alone_are_exact():
    layer = layers(INT4)["gin"]
    x, edges = graph()
    layer(x, edges)
    protected = torch.arange(20) % 3 == 0
    seen = {}
    layer.mp_quantizers["message_low"].register_forward_hook(lambda m, i, o: seen.update(x=i[0], y=o))
    layer(x, edges, protected)
    same = (seen["x"] == seen["y"]).all(1)
    assert same[protected[edges[0]]].all()
    assert not same[~protected[edges[0]]].any()


@pytest.mark.parametrize("name", layers(INT8))
def test_gradients_reach_every_parameter(name):
    layer = layers(INT8)[name]
    x, edges = graph()
    layer(x, edges, torch.arange(20) % 4 == 0).square().sum().backward()
    for key, parameter in layer.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", layers(INT8))
def test_graphs_without_edges_and_isolated_nodes(name):
    layer = layers(INT8)[name]
    layer(*graph())
    layer.eval()
    y = layer(torch.rand(3, 6), torch.empty(2, 0, dtype=torch.int64))
    assert y.shape[0] == 3
    assert y.isfinite().all()
