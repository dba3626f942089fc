"""bgnn.models.ties: rules for equal distances, each against distances by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bgnn.models import dgcnn, ties
from bgnn.models.layers import distances, knn

SHIPPED = Path(__file__).parents[2] / "models" / "trained"


@pytest.fixture
def signs() -> torch.Tensor:
    return torch.randn(2, 40, 6, generator=torch.Generator().manual_seed(0)).sign()


@pytest.mark.parametrize("rule", [ties.highest, ties.drawn(3), ties.unruled])
def test_every_rule_takes_the_nearest(rule: ties.Rule, signs: torch.Tensor) -> None:
    found = distances(signs, "hamming").gather(2, rule(signs, 8, "hamming"))
    nearest = distances(signs, "hamming").sort(-1)[0][..., :8]
    assert found.sort(-1)[0].equal(nearest)


def test_the_highest_index_comes_first(signs: torch.Tensor) -> None:
    away = distances(signs, "hamming")
    for cloud in range(2):
        for node in range(40):
            wanted = sorted(range(40), key=lambda one: (float(away[cloud, node, one]), -one))[:8]
            assert ties.highest(signs, 8, "hamming")[cloud, node].tolist() == wanted


def test_random_orders_differ_and_a_seed_repeats_one(signs: torch.Tensor) -> None:
    one, same, other = (ties.drawn(seed)(signs, 8, "hamming") for seed in (1, 1, 2))
    assert one.equal(same)
    assert not one.equal(other)


def test_a_network_uses_the_rule_and_then_its_own(signs: torch.Tensor) -> None:
    model = dgcnn.BF2(classes=5, k=4, knn="hamming", channels=(8, 8, 8, 8), embedding=16, mlp=(8, 8)).eval()
    points, asked = torch.randn(3, 20, 3), []

    def rule(x: torch.Tensor, k: int, metric: str) -> torch.Tensor:
        asked.append(metric)
        return knn(x, k, metric)

    assert ties.predictions(model, points, rule).tolist() == model(points).argmax(1).tolist()
    assert asked == ["l2", "hamming", "hamming", "hamming"]
    shares = ties.choices(model, points)
    assert len(shares) == 4
    assert shares[0] == 0
    assert min(shares[1:]) > 0.3, "8 signs have few distances"


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ties, "load_clouds", lambda path, points: ties_data(points))
    monkeypatch.setattr(ties, "DRAWS", 2)
    ties.main([str(SHIPPED / "bf2_shapes.pt")])
    table = capsys.readouterr().out
    assert "| the lowest index | " in table
    assert "| 0 of 16 |" in table
    assert "nodes with a choice, in each k-NN: 0.0%, " in table
    with pytest.raises(SystemExit) as stopped:
        ties.main([str(SHIPPED / "cora_gcn_dq8.pt")])
    assert stopped.value.code == 1
    assert "finds no neighbours" in capsys.readouterr().err


def ties_data(points: int) -> object:
    from bgnn.models.clouds import CloudData
    from bgnn.models.shapes import SHAPES, make_clouds

    return CloudData("procedural solids", None, make_clouds(16, points, 7), SHAPES)
