"""Training of point-cloud networks: the three-stage cascade of the binary GNN paper, its parts, and resuming.

A run has a folder, and whatever ends it, the same command goes on from there with the same result as without the break:

    config.json   what is trained (another configuration is refused)       state.pt    where it is, in mid-epoch too
    stage0.pt ... the finished stages                                       curves.*    loss and accuracies per epoch
    model.pt      the last stage's network, compact, for bgnn-convert       result.json the accuracies
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
from bgnn.models.layers import BinaryDot, use_surrogate
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
    model: Any,
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
    surrogate: str = "straight",
    latent_rate: float = 1.0,
    still_scales: bool = False,
    teacher: nn.Module | None = None,
    lsp: tuple[str, str, float] | None = None,
    state: State | None = None,
    history: list[dict[str, Any]] | None = None,
    on_epoch: Callable[[list[dict[str, Any]]], None] = lambda history: None,
    save_every: int = SAVE_EVERY,
) -> None:
    """Trains `model` in place with Adam; `state`, `history` and `on_epoch` as of `fit`, the rest as of `CloudRecipe`.

    Raises ValueError, one line, on a loss that is no number.
    """
    latent = {id(m.weights_real) for m in model.modules() if isinstance(m, BinaryDot) and m.binary}
    still = {id(p) for scale in model.scales_before_norms() for p in scale.parameters()} if still_scales else set()
    moving = [p for p in model.parameters() if id(p) not in still]
    rest, binary = ([p for p in moving if (id(p) in latent) is part] for part in (False, True))
    groups: list[dict[str, Any]] = [{"params": rest}]
    if binary:
        groups.append({"params": binary, "factor": latent_rate})
    optimizer = torch.optim.Adam(groups, lr=rate, weight_decay=decay)
    steps = data.count // batch

    def rate_of(epoch: int, step: int) -> float:
        use_surrogate(model, surrogate, (epoch + step / steps) / epochs)
        return rate_at(schedule, rate, epoch, epochs, step, steps, halve_every)

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
        rate=rate_of,
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


def network(recipe: CloudRecipe, stage: int, classes: int) -> Any:
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
    teacher: Path | None = None,
    tensorboard: bool = False,
    procedural: int = 6000,
    save_every: int = SAVE_EVERY,
) -> dict[str, float]:
    """Trains the stages of a recipe in `folder`, or what is missing of them; returns the accuracy after each.

    `teacher`: a model.pt in place of the stage that it is of, and of those before.
    `procedural`: solids in an epoch where `data` is of them.
    Raises ValueError or OSError, one line.
    """
    clouds = Clouds(data.train, seed, count=procedural, num_points=recipe.points, augment=recipe.augment)
    if not 1 <= recipe.batch <= clouds.count:
        raise ValueError(f"batch {recipe.batch} of {clouds.count} clouds: no full batch in an epoch")
    if recipe.batch % parallel.count():
        raise ValueError(f"batch {recipe.batch} is not a multiple of the {parallel.count()} processes")
    previous, first = (None, -1) if teacher is None else _given(teacher, recipe, len(data.names))
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
    for stage in recipe.stages:
        path = folder / f"stage{stage}.pt"
        if stage < first:
            continue
        if stage > first and path.is_file():
            previous = load_checkpoint(path)
            say(f"{names[stage]} is trained already: {path}")
        elif stage > first:
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
                surrogate=recipe.surrogate,
                latent_rate=recipe.latent_rate,
                still_scales=recipe.still_scales,
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
        assert previous is not None
        accuracies[names[stage]] = accuracy(previous, *held_out)
    if parallel.rank() == 0:
        assert previous is not None
        save_checkpoint(folder / "model.pt", previous, compact=True)
        result = {"seed": seed, "accuracy": accuracies, "clouds": len(held_out[0])}
        (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return accuracies


def _fingerprint(recipe: CloudRecipe, data: CloudData, seed: int, count: int) -> str:
    """What a run is of: the recipe, the seed and the data, as JSON."""
    labels = [] if data.train is None else np.bincount(data.train[1], minlength=len(data.names)).tolist()
    about = {"clouds": count, "classes": len(data.names), "of each": labels}
    return json.dumps({"seed": seed, "data": about, "recipe": dataclasses.asdict(recipe)}, indent=1)


def _given(path: Path, recipe: CloudRecipe, classes: int) -> tuple[nn.Module | None, int]:
    """A trained network in place of one of the recipe's stages, and which. Raises ValueError where it is of none."""
    model: Any = load_checkpoint(path)
    stage = 0 if model.architecture == "dgcnn" else int(model.config.get("stage", -1))
    if stage not in recipe.stages[:-1] or model.architecture != ("dgcnn" if stage == 0 else recipe.arch):
        what = f"a {model.architecture} network" + (f" of stage {stage}" if stage > 0 else "")
        raise ValueError(f"{path}: {what}, which teaches none of the stages {list(recipe.stages)} of {recipe.arch}")
    free = ("num_points", "dropout", "k") if stage == 0 else ("dropout",)
    wanted: Any = network(recipe, stage, classes)
    for name, value in wanted.config.items():
        if name not in free and model.config[name] != value:
            raise ValueError(f"{path}: {name} is {model.config[name]}, and {value} here")
    return model, stage
