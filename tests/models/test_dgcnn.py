"""The four models: Table 5's parameter counts, every knob, and a clean export."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from bgnn.models.checkpoint import build_model
from bgnn.models.dgcnn import ARCHITECTURES, parameter_counts
from bgnn.models.layers import BinaryDot

SMALL = {
    "classes": 5,
    "num_points": 20,
    "k": 4,
    "embedding": 16,
    "channels": [8, 8, 12, 16],
    "mlp": [12, 8],
}


def randomised(model: nn.Module) -> nn.Module:
    """The model in eval mode with BatchNorms and slopes that are not the identity."""
    generator = torch.Generator().manual_seed(7)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight.data, module.bias.data, module.running_mean):
                tensor.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2.0, generator=generator)
        elif isinstance(module, nn.PReLU):
            module.weight.data.uniform_(-0.3, 0.3, generator=generator)
    return model.eval()


@pytest.mark.parametrize(
    ("architecture", "fp32", "binary"),
    [
        ("dgcnn", 1_812_648, 0),
        ("rf", 15_243, 1_804_672),
        ("bf1", 11_064, 1_804_672),
        ("bf2", 11_064, 1_804_672),
    ],
)
def test_parameter_counts_are_those_of_table_5(architecture, fp32, binary):
    assert parameter_counts(build_model(architecture)) == (fp32, binary)


def test_the_baselines_count_has_five_batch_norms_twice():
    model = build_model("dgcnn")
    unique = sum(p.numel() for p in model.parameters())
    shared = sum(p.numel() for i in range(1, 6) for p in getattr(model, f"bn{i}").parameters())
    assert (unique, shared) == (1_809_576, 3_072)
    assert parameter_counts(model)[0] == unique + shared


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_knob_gives_logits_and_gradients(architecture):
    points = torch.randn(3, 20, 3, generator=torch.Generator().manual_seed(0))
    knobs = {"activation": ["prelu", "relu", "none"]}
    if architecture != "dgcnn":
        knobs |= {"stage": [1, 2, 3], "edge_balance": ["none", "mean", "median"]}
        knobs |= {"global_balance": ["none", "mean", "median"]}
    if architecture in ("bf1", "bf2"):
        knobs["knn"] = ["l2", "hamming"]
    for values in itertools.product(*knobs.values()):
        config = dict(zip(knobs, values, strict=True))
        torch.manual_seed(0)
        model = build_model(architecture, **SMALL, **config)
        logits = model(points)
        logits.logsumexp(1).sum().backward()
        assert logits.shape == (3, 5)
        assert logits.isfinite().all(), config
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, (config, name)
        assert model.eval()(points).shape == (3, 5)


def node_features(model: nn.Module, points: torch.Tensor) -> list[torch.Tensor]:
    """What the four layers hand on, as the fifth convolution's input sees it."""
    seen: list[torch.Tensor] = []
    target = model.conv5.core_op if hasattr(model.conv5, "core_op") else model.conv5[0]
    handle = target.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(points)
    handle.remove()
    return seen


@pytest.mark.parametrize("architecture", ["rf", "bf1", "bf2"])
def test_stages_quantise_what_the_paper_says(architecture):
    points = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(0))
    for stage in (1, 2, 3):
        model = randomised(build_model(architecture, **SMALL, stage=stage))
        (features,) = node_features(model, points)
        assert features.abs().max() <= 1
        assert set(features.unique().tolist()) == {-1.0, 1.0} or stage == 1
        assert (features.unique().numel() > 10) == (stage == 1)
        binary = {name for name, m in model.named_modules() if isinstance(m, BinaryDot) and m.binary}
        assert len(binary) == (7 if stage == 3 else 0)
        assert "linear3.core_op" not in binary


def test_bf1_and_bf2_differ_only_in_the_place_of_the_batch_norm():
    """With positive BatchNorm scales the maximum commutes with it, and the two compute the same."""
    points = torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    bf1, bf2 = build_model("bf1", **SMALL).eval(), build_model("bf2", **SMALL).eval()
    bf2.load_state_dict(bf1.state_dict())
    torch.testing.assert_close(bf1(points), bf2(points))
    randomised(bf1)
    bf2.load_state_dict(bf1.state_dict())
    assert not torch.allclose(bf1(points), bf2(points))


@pytest.mark.parametrize(
    ("architecture", "shapes"),
    [
        (
            "dgcnn",
            {
                "conv1.0.weight": (64, 6, 1, 1),
                "conv1.1.bias": (64,),
                "bn1.bias": (64,),
                "linear2.bias": (256,),
            },
        ),
        (
            "bf2",
            {"conv2.0.weights_real": (64, 128, 1, 1), "conv2.1.scale_c": (1, 1, 1), "conv2.2.weight": (1,)},
        ),
        (
            "bf1",
            {"conv5.0.weights_real": (1024, 512, 1), "conv5.1.scale_b": (1, 1), "bn5.running_var": (1024,)},
        ),
        (
            "rf",
            {
                "conv2.center.weight": (128,),
                "conv2.rescale.scale_b": (1, 1024, 1),
                "conv2.activ.weight": (1,),
            },
        ),
        ("rf", {"linear3.core_op.weights_real": (40, 256), "linear3.rescale.scale_a": (40,)}),
    ],
)
def test_keys_are_those_of_the_public_code(architecture, shapes):
    """Weights trained with the DGCNN authors' code and the binary GNN paper's load without renaming."""
    state = build_model(architecture).state_dict()
    assert {key: tuple(state[key].shape) for key in shapes} == shapes


@pytest.mark.parametrize("metric", ["l2", "hamming"])
def test_training_sees_the_neighbours_of_inference(metric):
    """In training mode the k-NN takes another, faster road; with BatchNorm frozen the logits are the same."""
    torch.manual_seed(0)
    model = randomised(build_model("bf2", **SMALL, dropout=0.0, knn=metric))
    points = torch.randn(2, 20, 3)
    expected = model(points)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eval()
    assert torch.equal(model(points), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("stage", [2, 3])
def test_export_is_bit_equal(architecture, stage):
    config = {} if architecture == "dgcnn" else {"stage": stage, "edge_balance": "median"}
    if architecture.startswith("bf"):
        config["knn"] = "hamming"
    torch.manual_seed(0)
    model = randomised(build_model(architecture, **SMALL, **config))
    points = torch.randn(2, 20, 3)
    program = torch.export.export(model, (points,)).run_decompositions({})
    other = torch.randn(2, 20, 3)
    with torch.no_grad():
        assert torch.equal(program.module()(other), model(other))
    assert not any("set_" in str(node.target) for node in program.graph.nodes)


@pytest.mark.parametrize(
    ("architecture", "config", "message"),
    [
        ("bf2", {"k": 21, "num_points": 20}, "k = 21 neighbours of only num_points = 20"),
        ("bf2", {"channels": [64, 64]}, "the four EdgeConv layers need 4"),
        ("bf2", {"mlp": [64]}, "the two hidden layers need 2"),
        ("bf1", {"stage": 4}, "stage is 4; it must be one of 1, 2, 3"),
        ("bf1", {"knn": "cosine"}, "knn is 'cosine'"),
        ("rf", {"knn": "hamming"}, "no Hamming distance"),
        ("dgcnn", {"stage": 3}, "dgcnn has no setting 'stage'"),
        ("mpnn", {}, "unknown architecture 'mpnn'; known are dgcnn, rf, bf1, bf2,"),
        ("bf2", {"classes": 0}, "classes is 0"),
        ("bf2", {"k": "20"}, "setting 'k' is '20'; the default is 20"),
        ("dgcnn", {"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_bad_settings_are_named(architecture, config, message):
    with pytest.raises(ValueError, match=message):
        build_model(architecture, **config)


@pytest.mark.parametrize(
    ("architecture", "shape", "message"),
    [
        ("bf2", (2, 3, 20), r"shape \[2, 3, 20\]; a batch of clouds is \[B, N, 3\]"),
        ("bf2", (2, 3, 3), "k = 4 neighbours of only 3 points"),
        ("rf", (2, 21, 3), "21 points; rf's rescaling was made for 20"),
    ],
)
def test_bad_inputs_are_named(architecture, shape, message):
    with pytest.raises(ValueError, match=message):
        build_model(architecture, **SMALL).eval()(torch.randn(shape))
