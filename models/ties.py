"""What another rule for equal distances does to a trained point-cloud network.

    python -m bgnn.models.ties out/train/NAME/seed0/model.pt --data DIR
    python -m bgnn.models.ties models/trained/bf2_shapes.pt                     (the procedural solids)

Features of +-1 tie nearly always: which of several points at the k-th distance become neighbours is then the rule's
choice. Networks here are trained with the runtimes' rule, the lowest index first. Prints a Markdown table: each rule's
accuracy on the held-out clouds, and how many predictions are other than the lowest index's; below it, in each k-NN,
for how many nodes the rule has a choice.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bgnn.models import dgcnn
from bgnn.models.checkpoint import load_checkpoint
from bgnn.models.clouds import load_clouds
from bgnn.models.layers import distances, knn

Rule = Callable[[Tensor, int, str], Tensor]
DRAWS = 5


def highest(x: Tensor, k: int, metric: str) -> Tensor:
    """As `layers.knn`; of equal distances the highest index comes first."""
    return x.shape[1] - 1 - knn(x.flip(1), k, metric).flip(1)


def unruled(x: Tensor, k: int, metric: str) -> Tensor:
    """As `layers.knn`; of equal distances whatever `torch.topk` takes, as in most public code."""
    return distances(x, metric).topk(k, dim=-1, largest=False)[1]


def drawn(seed: int) -> Rule:
    """The rule that orders all points at random, anew in each k-NN, and of equal distances takes the first ones."""
    generator = torch.Generator().manual_seed(seed)

    def random(x: Tensor, k: int, metric: str) -> Tensor:
        order = torch.randperm(x.shape[1], generator=generator)
        return order[knn(x[:, order], k, metric)][:, order.argsort()]

    return random


@contextmanager
def neighbours_by(rule: Rule) -> Iterator[None]:
    """Networks of `bgnn.models.dgcnn` find their neighbours by another rule, inside."""
    own = dgcnn.knn

    def by_rule(x: Tensor, k: int, metric: str, *, fast: bool = False) -> Tensor:
        return rule(x, k, metric)

    dgcnn.knn = by_rule
    try:
        yield
    finally:
        dgcnn.knn = own


def predictions(model: nn.Module, points: Tensor, rule: Rule, batch: int = 50) -> np.ndarray:
    """The classes `[M]` of clouds `[M, N, 3]`; `model` is in eval mode."""
    with torch.no_grad(), neighbours_by(rule):
        return torch.cat([model(part).argmax(1) for part in points.split(batch)]).numpy()


def choices(model: nn.Module, points: Tensor) -> list[float]:
    """In each k-NN of `model`, in order: the share of nodes whose k-th and next distances are equal."""
    found: list[float] = []

    def looked_at(x: Tensor, k: int, metric: str) -> Tensor:
        nearest = distances(x, metric).topk(k + 1, dim=-1, largest=False)[0]
        found.append(float((nearest[..., k - 1] == nearest[..., k]).double().mean()))
        return knn(x, k, metric)

    predictions(model, points, looked_at, batch=len(points))
    return found


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bgnn.models.ties", description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, help="as of bgnn.models.train")
    options = parser.parse_args(arguments)
    try:
        model = load_checkpoint(options.model).eval()
        if not isinstance(model, dgcnn.PointCloudNet):
            raise ValueError(f"{options.model} holds a {type(model).__name__}, which finds no neighbours")
        clouds, labels = load_clouds(options.data, model.config["num_points"]).test
    except (ValueError, OSError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    points = torch.from_numpy(clouds)
    own = predictions(model, points, knn)

    def row(name: str, rules: list[Rule]) -> None:
        found = [predictions(model, points, rule) for rule in rules]
        right = 100 * np.array([(one == labels).mean() for one in found])
        other = [int((one != own).sum()) for one in found]
        spread = f" ± {right.std(ddof=1):.1f}" if len(rules) > 1 else ""
        print(f"| {name} | {right.mean():.1f}{spread} | {sum(other) / len(other):g} of {len(own)} |", flush=True)

    print("| of equal distances | accuracy, % | other predictions |\n|---|---|---|")
    row("the lowest index", [knn])
    row("the highest index", [highest])
    row(f"a random one ({DRAWS} draws)", [drawn(seed) for seed in range(DRAWS)])
    row("`torch.topk`'s", [unruled])
    shares = ", ".join(f"{share:.1%}" for share in choices(model, points[:20]))
    print(f"\nnodes with a choice, in each k-NN: {shares}")


if __name__ == "__main__":
    main()
