"""Training of Degree-Quant networks and of their float twins: one run per seed, stopped early on validation loss."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch_geometric.data import Batch, Data

from bgnn.models.dq.bags import Bags
from bgnn.models.dq.mask import protection
from bgnn.models.dq.networks import DegreeQuantNet, build
from bgnn.models.dq.presets import Recipe
from bgnn.models.fit import State

#: The share of features that are not zero, below which training takes them as `Bags`.
SPARSE = 0.1
#: A validation loss, and the score on the test part: accuracy in percent, or the mean absolute error (ZINC).
Measured = tuple[float, float]


@dataclass
class Run:
    """One trained network: the state of the epoch with the lowest validation loss."""

    model: DegreeQuantNet
    epochs: int
    validation_loss: float
    test: float  # accuracy in percent, or mean absolute error
    seconds: float


def train_citation(
    config: dict[str, Any],
    recipe: Recipe,
    graph: Data,
    seed: int,
    progress: bool = False,
    state: State | None = None,
) -> Run:
    """Trains on one graph with masks of its split (`train_mask`, `val_mask`, `test_mask`, bool [N])."""
    torch.manual_seed(seed)
    model = build(config)
    protect = protection(graph.edge_index, int(graph.num_nodes or 0), recipe.p_min, recipe.p_max)
    optimizer = _adam(model, recipe)
    bags = model.settings.conv != "sage" and int((graph.x != 0).sum()) < SPARSE * graph.x.numel()
    features = Bags.of(graph.x, graph.edge_index) if bags else graph.x

    def step() -> float:
        logits = model(features, graph.edge_index, protect=protect)
        loss = F.cross_entropy(logits[graph.train_mask], graph.y[graph.train_mask])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    def measure(x: Tensor | Bags = features) -> Measured:
        logits = model(x, graph.edge_index)
        loss = F.cross_entropy(logits[graph.val_mask], graph.y[graph.val_mask]).item()
        hits = logits[graph.test_mask].argmax(1) == graph.y[graph.test_mask]
        return loss, 100 * hits.float().mean().item()

    run = _fit(model, optimizer, recipe, step, measure, progress, state)
    with torch.no_grad():  # what is reported is of the network on a tensor, as it is used
        return replace(run, test=measure(graph.x)[1])


def train_graphs(
    config: dict[str, Any],
    recipe: Recipe,
    graphs: list[Data],
    fold: tuple[list[int], list[int], list[int]],
    seed: int,
    progress: bool = False,
    state: State | None = None,
) -> Run:
    """Trains on many graphs; `fold`: indices of the training, validation and test part."""
    torch.manual_seed(seed)
    model = build(config)
    loss_of: Callable[..., Tensor] = F.l1_loss if model.settings.classes == 1 else F.cross_entropy
    optimizer = _adam(model, recipe)
    for i in fold[0]:
        graph = graphs[i]
        graph.protect = protection(graph.edge_index, int(graph.num_nodes or 0), recipe.p_min, recipe.p_max)
    train, validation, test = ([graphs[i] for i in part] for part in fold)
    fixed = [list(_batches(part, 256)) for part in (validation, test)]

    def step() -> float:
        total = 0.0
        order = torch.randperm(len(train)).tolist()
        for batch in _batches([train[i] for i in order], recipe.batch):
            logits = model(batch.x, batch.edge_index, batch.batch, batch.num_graphs, batch.protect)
            loss = loss_of(_shaped(logits), batch.y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.item() * batch.num_graphs
        return total / len(train)

    def measure() -> Measured:
        return _whole(model, fixed[0], loss_of)[0], _whole(model, fixed[1], loss_of)[1]

    return _fit(model, optimizer, recipe, step, measure, progress, state)


def _adam(model: DegreeQuantNet, recipe: Recipe) -> torch.optim.Adam:
    """Learned steps have no weight decay, which would hold them where they began."""
    steps = [value for name, value in model.named_parameters() if name.endswith(".log_step")]
    held = {id(step) for step in steps}
    groups: list[dict[str, Any]] = [{"params": [value for value in model.parameters() if id(value) not in held]}]
    if steps:
        groups.append({"params": steps, "weight_decay": 0.0})
    return torch.optim.Adam(groups, lr=recipe.rate, weight_decay=recipe.decay)


def _batches(graphs: list[Data], size: int) -> Iterator[Any]:
    for start in range(0, len(graphs), size):
        yield Batch.from_data_list(graphs[start : start + size])


def _shaped(logits: Tensor) -> Tensor:
    """Class scores as they are; a regression's `[B, 1]` as `[B]`."""
    return logits.view(-1) if logits.shape[1] == 1 else logits


def _whole(model: DegreeQuantNet, batches: list[Any], loss_of: Callable[..., Tensor]) -> Measured:
    """Mean loss and score over all batches."""
    loss, hits, count = 0.0, 0, 0
    for batch in batches:
        logits = _shaped(model(batch.x, batch.edge_index, batch.batch, batch.num_graphs))
        loss += loss_of(logits, batch.y).item() * batch.num_graphs
        hits += int((logits.argmax(1) == batch.y).sum()) if logits.dim() == 2 else 0
        count += batch.num_graphs
    return loss / count, loss / count if model.settings.classes == 1 else 100 * hits / count


def _fit(
    model: DegreeQuantNet,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    step: Callable[[], float],
    measure: Callable[[], Measured],
    progress: bool,
    keeper: State | None = None,
) -> Run:
    """Epochs of `step` until validation loss has not fallen for `patience` epochs; the best epoch is kept.

    `keeper` keeps where the run is after each epoch, and it goes on from there. Raises ValueError on a loss that is no
    number.
    """
    start = time.perf_counter()
    best, best_epoch, score, validation = math.inf, 0, math.nan, math.nan
    state = copy.deepcopy(model.state_dict())
    epoch = 0
    if keeper is not None and keeper.content:
        begun = keeper.content
        model.load_state_dict(begun["model"])
        optimizer.load_state_dict(begun["optimizer"])
        state, epoch = begun["best_model"], begun["epoch"]
        best, best_epoch, score, validation = begun["best"]
        torch.set_rng_state(begun["random"][0])
    while epoch < recipe.epochs and epoch - best_epoch < recipe.patience:
        epoch += 1
        model.train()
        loss = step()
        if not math.isfinite(loss):
            raise ValueError(
                f"epoch {epoch}: the loss is {loss} at rate {optimizer.param_groups[0]['lr']:.2g}; lower it"
            )
        if epoch % recipe.every == 0 or epoch == recipe.epochs:
            model.eval()
            with torch.no_grad():
                validation, test = measure()
            if validation < best:
                best, best_epoch, score = validation, epoch, test
                state = copy.deepcopy(model.state_dict())
        if progress and (epoch % 20 == 0 or epoch == recipe.epochs):
            print(f"  epoch {epoch}: loss {loss:.3f}, validation loss {validation:.3f} (best {best:.3f})", flush=True)
        if recipe.halve_every and epoch % recipe.halve_every == 0:
            for group in optimizer.param_groups:
                group["lr"] *= 0.5
        if keeper is not None:
            parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "best_model": state}
            keeper.write(epoch=epoch, best=[best, best_epoch, score, validation], **parts)
    model.load_state_dict(state)
    return Run(model.eval(), epoch, best, score, time.perf_counter() - start)
