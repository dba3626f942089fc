"""Training of point-cloud networks: the three-stage cascade of the binary GNN paper, its parts, and resuming.

A run has a folder, and whatever ends it, the same command goes on from there with the same result as without the break:

    config.json   what is trained (another configuration is refused)       state.pt    where it is, in mid-epoch too
    stage0.pt ... the finished stages                                       curves.*    loss and accuracies per epoch
    model.pt      the last stage's network, which bgnn-convert takes        result.json the accuracies
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bgnn.models import parallel
from bgnn.models.checkpoint import build_model, load_checkpoint, save_checkpoint
from bgnn.models.clouds import CloudData, Clouds
from bgnn.models.curves import write_events, write_history
from bgnn.models.distill import ALPHA, SIMILARITIES, cloud_lsp, distillation_loss
from bgnn.models.fit import SAVE_EVERY, State, check_folder, fit, rate_at, say, settle_batch_norm, step_of
from bgnn.models.recipes import CloudRecipe


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    points: Tensor,
    labels: Tensor,
    teacher: nn.Module | None,
    lsp: tuple[str, str, float] | None = None,
) -> tuple[float, float]:
    """One optimiser step on clouds `[B, N, 3]` with labels `[B]`; returns the loss and the share of right classes.

    `lsp`: names in SIMILARITIES for student and teacher, and the weight. Raises ValueError on a loss that is no number.
    """
    graphs: list[Any] = []
    logits = model(points) if lsp is None else _seen(model, points, graphs)
    loss = F.cross_entropy(logits, labels)
    if teacher is not None:
        teachers: list[Any] = []
        with torch.no_grad():
            target = teacher(points) if lsp is None else _seen(teacher, points, teachers)
        loss = (1 - ALPHA) * loss + ALPHA * distillation_loss(logits, target)
        if lsp is not None:
            loss = loss + lsp[2] * cloud_lsp(graphs, teachers, SIMILARITIES[lsp[0]], SIMILARITIES[lsp[1]])
    return step_of(model, optimizer, loss), (logits.argmax(1) == labels).float().mean().item()


def _seen(model: Any, points: Tensor, graphs: list[Any]) -> Tensor:
    """The logits of a PointCloudNet; `graphs` gets its EdgeConvs' node features and neighbours."""
    logits, of_layers = model.with_graphs(points)
    graphs += of_layers
    return logits


@torch.no_grad()
def accuracy(model: nn.Module, points: Tensor, labels: Tensor, batch: int = 50) -> float:
    """The share of clouds `[M, N, 3]` that `model`, put in eval mode, classifies as `labels [M]`."""
    model.eval()
    hits = sum(
        int((model(points[i : i + batch]).argmax(1) == labels[i : i + batch]).sum())
        for i in range(0, len(points), batch)
    )
    return hits / len(points)


def train_stage(
    model: nn.Module,
    name: str,
    data: Clouds,
    held_out: tuple[Tensor, Tensor],
    *,
    stage: int,
    epochs: int,
    batch: int,
    rate: float,
    decay: float,
    schedule: str = "cosine",
    halve_every: int = 50,
    settle: bool = True,
    teacher: nn.Module | None = None,
    lsp: tuple[str, str, float] | None = None,
    state: State | None = None,
    history: list[dict[str, Any]] | None = None,
    on_epoch: Callable[[list[dict[str, Any]]], None] = lambda history: None,
    save_every: int = SAVE_EVERY,
) -> None:
    """Trains `model` in place with Adam; `state`, `history` and `on_epoch` as of `fit`.

    Raises ValueError, one line, on a loss that is no number.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, weight_decay=decay)
    steps = data.count // batch

    def step(clouds: tuple[Tensor, Tensor]) -> tuple[float, float]:
        points, labels = clouds
        return train_step(model, optimizer, parallel.share(points), parallel.share(labels), teacher, lsp)

    fit(
        model,
        optimizer,
        name,
        stage=stage,
        epochs=epochs,
        steps=steps,
        batches=lambda epoch: data.epoch(stage, epoch, batch),
        step=step,
        measure=lambda: {"held-out accuracy": accuracy(model, *held_out)},
        rate=lambda epoch, step: rate_at(schedule, rate, epoch, epochs, step, steps, halve_every),
        scored="held-out accuracy",
        state=state,
        history=history,
        on_epoch=on_epoch,
        save_every=save_every,
    )
    if settle:
        settle_batch_norm(model, (parallel.share(points) for points, _ in data.epoch(stage, epochs, batch)))
        parallel.average_statistics(model)
        say(f"{name} settled: held-out accuracy {accuracy(model, *held_out):.3f}")
    model.eval()


def network(recipe: CloudRecipe, stage: int, classes: int) -> nn.Module:
    """The network of a stage, with fresh weights, in training mode."""
    if stage == 0:
        return build_model("dgcnn", classes=classes, **recipe.sizes)
    return build_model(recipe.arch, classes=classes, stage=stage, **recipe.sizes, **recipe.knobs)


def train_cascade(
    recipe: CloudRecipe,
    data: CloudData,
    folder: Path,
    seed: int,
    *,
    baseline: Path | None = None,
    tensorboard: bool = False,
    procedural: int = 6000,
    save_every: int = SAVE_EVERY,
) -> dict[str, float]:
    """Trains the stages of a recipe in `folder`, or what is missing of them; returns the accuracy after each.

    `baseline`: a model.pt in place of stage 0. `procedural`: solids in an epoch where `data` is of them.
    Raises ValueError or OSError, one line.
    """
    clouds = Clouds(data.train, seed, count=procedural, num_points=recipe.points, augment=recipe.augment)
    if not 1 <= recipe.batch <= clouds.count:
        raise ValueError(f"batch {recipe.batch} of {clouds.count} clouds: no full batch in an epoch")
    if recipe.batch % parallel.count():
        raise ValueError(f"batch {recipe.batch} is not a multiple of the {parallel.count()} processes")
    held_out = torch.from_numpy(data.test[0]), torch.from_numpy(data.test[1])
    folder.mkdir(parents=True, exist_ok=True)
    fingerprint = _fingerprint(recipe, data, seed, clouds.count)
    state = State(folder, fingerprint)
    check_folder(folder / "config.json", fingerprint)
    history: list[dict[str, Any]] = state.content.get("history", [])
    names = {stage: "dgcnn" if stage == 0 else f"{recipe.arch} stage {stage}" for stage in recipe.stages}

    def on_epoch(history: list[dict[str, Any]]) -> None:
        if parallel.rank() == 0:
            write_history(folder, history)
            if tensorboard:
                write_events(folder, history)

    accuracies: dict[str, float] = {}
    previous: nn.Module | None = None
    for stage in recipe.stages:
        path = folder / f"stage{stage}.pt"
        if stage == 0 and baseline is not None and recipe.arch != "dgcnn":
            previous = _baseline(baseline, recipe, len(data.names))
        elif path.is_file():
            previous = load_checkpoint(path)
            say(f"{names[stage]} is trained already: {path}")
        else:
            torch.manual_seed(1000 * seed + stage)
            model = network(recipe, stage, len(data.names))
            from_teacher = stage == 2 or (stage == 3 and recipe.init == "teacher")
            if previous is not None and from_teacher and previous.architecture == recipe.arch:
                model.load_state_dict(previous.state_dict())
            torch.manual_seed(1000 * seed + stage + 100 * (1 + parallel.rank()))  # dropout of each process
            weights = recipe.similarities(stage)
            train_stage(
                model,
                names[stage],
                clouds,
                held_out,
                stage=stage,
                epochs=recipe.epochs[stage],
                batch=recipe.batch,
                rate=recipe.rate[stage],
                decay=recipe.decay[stage],
                schedule=recipe.schedule[stage],
                halve_every=recipe.halve_every,
                settle=recipe.settle,
                teacher=previous,
                lsp=None if recipe.lsp == "none" or previous is None else (*weights, recipe.lsp_weight),
                state=state,
                history=history,
                on_epoch=on_epoch,
                save_every=save_every,
            )
            if parallel.rank() == 0:
                save_checkpoint(path, model)
            parallel.wait()
            previous = model
        accuracies[names[stage]] = accuracy(previous, *held_out)
    if parallel.rank() == 0:
        assert previous is not None
        save_checkpoint(folder / "model.pt", previous)
        result = {"seed": seed, "accuracy": accuracies, "clouds": len(held_out[0])}
        (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return accuracies


def _fingerprint(recipe: CloudRecipe, data: CloudData, seed: int, count: int) -> str:
    """What a run is of: the recipe, the seed and the data, as JSON."""
    labels = [] if data.train is None else np.bincount(data.train[1], minlength=len(data.names)).tolist()
    about = {"clouds": count, "classes": len(data.names), "of each": labels}
    return json.dumps({"seed": seed, "data": about, "recipe": dataclasses.asdict(recipe)}, indent=1)


def _baseline(path: Path, recipe: CloudRecipe, classes: int) -> nn.Module:
    model = load_checkpoint(path)
    if model.architecture != "dgcnn":
        raise ValueError(f"{path}: a {model.architecture} network; the baseline is a dgcnn")
    for name, wanted in {"classes": classes, **recipe.sizes}.items():
        if name not in ("num_points", "dropout", "k") and model.config[name] != wanted:
            raise ValueError(f"{path}: {name} is {model.config[name]}, and {wanted} here")
    return model
