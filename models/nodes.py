"""Training of GraphSAGE, BinSAGE and the GCN on sampled neighbourhoods, measured on the whole graph.

    python -m bgnn.models.train sage --config models/configs/binary-table3-....json --data ROOT [--set data=cora]

A run's folder is as of `cascade`; model.pt carries a sample of the graph, so that bgnn-convert takes it by its path.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bgnn.models import parallel
from bgnn.models.checkpoint import build_model, load_checkpoint, save_checkpoint
from bgnn.models.curves import write_events, write_history
from bgnn.models.distill import ALPHA, distillation_loss
from bgnn.models.fit import SAVE_EVERY, State, check_folder, fit, say, settle_batch_norm, step_of
from bgnn.models.neighbours import Neighbours, graph_of, infer
from bgnn.models.node_data import NodeData
from bgnn.models.recipes import NodeRecipe
from bgnn.models.sage import NodeNet, Sample, scales

SETTLE, SETTLE_BATCHES = 256, 20  # nodes wanted at once, and how often, where statistics are taken anew
EXAMPLE = 64  # nodes whose sampled neighbourhood travels in model.pt


def roc_auc(scores: Tensor, labels: Tensor) -> float:
    """The mean area under the ROC curve over the columns of `[N, T]` that have both labels, as OGB's evaluator.

    Equal scores count half. NaN if there is no such column.
    """
    areas = []
    for column, label in zip(scores.double().numpy().T, labels.numpy().T, strict=True):
        positives = int(label.sum())
        if not 0 < positives < len(label):
            continue
        _, inverse, counts = np.unique(column, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
        area = ranks[label == 1].sum() - positives * (positives + 1) / 2
        areas.append(area / (positives * (len(label) - positives)))
    return float(np.mean(areas)) if areas else math.nan


def score(logits: Tensor, data: NodeData, part: Tensor) -> float:
    """Accuracy on some nodes, or with several labels the mean ROC AUC."""
    if data.multi_label:
        return roc_auc(logits[part], data.y[part])
    return (logits[part].argmax(1) == data.y[part]).float().mean().item()


def network(recipe: NodeRecipe, data: NodeData, stage: int) -> NodeNet:
    """The network of a stage, with fresh weights, in training mode."""
    sizes: dict[str, Any] = {"features": data.x.shape[1], "classes": data.classes, "hidden": recipe.hidden}
    sizes |= {"layers": recipe.layers, "dropout": recipe.dropout}
    if recipe.arch == "gcn":
        return build_model("gcn", **sizes)  # type: ignore[return-value]
    sizes["normalise"] = recipe.normalise
    if stage == 0:
        return build_model("sage", **sizes)  # type: ignore[return-value]
    return build_model("binsage", **sizes, activation=recipe.activation, stage=stage)  # type: ignore[return-value]


def train_step(
    model: NodeNet,
    optimizer: torch.optim.Optimizer,
    sample: Sample,
    data: NodeData,
    degree: Tensor,
    teacher: NodeNet | None,
) -> tuple[float, float]:
    """One step on a sample; the loss, and the share of right labels. `degree` f32 `[N]`: of the whole graph.

    Raises ValueError on a loss that is no number.
    """
    inputs = data.x[sample.nodes], degree[sample.nodes], sample
    logits = model.on_sample(*inputs)
    labels = data.y[sample.nodes[: sample.node_ends[0]]]
    if data.multi_label:
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        right = ((logits > 0) == (labels > 0)).float().mean().item()
    else:
        loss = F.cross_entropy(logits, labels)
        right = (logits.argmax(1) == labels).float().mean().item()
    if teacher is not None:
        with torch.no_grad():
            target = teacher.on_sample(*inputs)
        loss = (1 - ALPHA) * loss + ALPHA * distillation_loss(logits, target)
    return step_of(model, optimizer, loss), right


def train_nodes(
    recipe: NodeRecipe,
    data: NodeData,
    folder: Path,
    seed: int,
    *,
    tensorboard: bool = False,
    save_every: int = SAVE_EVERY,
) -> dict[str, float]:
    """Trains the stages of a recipe in `folder`, or what is missing of them; the test score after each.

    Raises ValueError or OSError, one line.
    """
    if recipe.distillation != "none" and data.multi_label:
        raise ValueError(
            f"{data.what} has several labels a node, and logit matching is of one class: distillation 'none'"
        )
    if min(recipe.batch, len(data.train)) < parallel.count():
        raise ValueError(f"a batch of {min(recipe.batch, len(data.train))} for {parallel.count()} processes")
    folder.mkdir(parents=True, exist_ok=True)
    about = {"nodes": len(data.x), "edges": data.edge_index.shape[1], "train": len(data.train)}
    fingerprint = json.dumps({"seed": seed, "data": about, "recipe": dataclasses.asdict(recipe)}, indent=1)
    state = State(folder, fingerprint)
    check_folder(folder / "config.json", fingerprint)
    history: list[dict[str, Any]] = state.content.get("history", [])
    scores: dict[str, float] = {}
    previous: NodeNet | None = None
    for stage in recipe.stages:
        path = folder / f"stage{stage}.pt"
        name = f"{recipe.arch} stage {stage}" if stage else ("gcn" if recipe.arch == "gcn" else "sage")
        if path.is_file():
            model: NodeNet = load_checkpoint(path)  # type: ignore[assignment]
            say(f"{name} is trained already: {path}")
        else:
            torch.manual_seed(1000 * seed + stage)
            model = network(recipe, data, stage)
            if previous is not None and stage > 1:
                model.load_state_dict(previous.state_dict())
            torch.manual_seed(1000 * seed + stage + 100 * (1 + parallel.rank()))
            run = _Run(recipe, data, seed, state, history, folder, tensorboard, save_every)
            run.train_stage(model, name, previous, stage)
            if parallel.rank() == 0:
                save_checkpoint(path, model)
            parallel.wait()
        scores[name] = score(infer(model, data.x, graph_of(model, data.edge_index, len(data.x))), data, data.test)
        previous = model
    if parallel.rank() == 0:
        assert previous is not None
        rng = np.random.default_rng(0)
        part = Neighbours(data.edge_index, len(data.x)).sample(data.test[:EXAMPLE].numpy(), recipe.sizes, rng)
        example = {"x": data.x[part.nodes], "edge_index": part.edges}
        save_checkpoint(folder / "model.pt", previous, compact=True, example=example)
        (folder / "result.json").write_text(json.dumps({"seed": seed, "test": scores}, indent=1) + "\n")
    return scores


@dataclasses.dataclass
class _Run:
    """What all stages of a run share."""

    recipe: NodeRecipe
    data: NodeData
    seed: int
    state: State
    history: list[dict[str, Any]]
    folder: Path
    tensorboard: bool
    save_every: int

    def train_stage(self, model: NodeNet, name: str, teacher: NodeNet | None, stage: int) -> None:
        recipe, data = self.recipe, self.data
        batch = min(recipe.batch, len(data.train))
        steps = len(data.train) // batch
        regular = scales(model)
        held = {id(parameter) for parameter in regular}
        rest = [parameter for parameter in model.parameters() if id(parameter) not in held]
        groups = [{"params": rest, "weight_decay": 0.0}]
        if regular:
            groups.append({"params": regular, "weight_decay": recipe.scale_decay})
        optimizer = torch.optim.Adam(groups, lr=recipe.rate)
        whole = graph_of(model, data.edge_index, len(data.x))

        def batches(epoch: int) -> Iterator[Sample]:
            rng = np.random.default_rng([self.seed, stage, epoch])
            order = rng.permutation(data.train.numpy())
            for start in range(0, steps * batch, batch):
                each = np.random.default_rng([self.seed, stage, epoch, start, parallel.rank()])
                wanted = order[start : start + batch][parallel.rank() :: parallel.count()]
                yield whole.sample(wanted, recipe.sizes, each)

        def measure() -> dict[str, float]:
            if recipe.settle:
                rng = np.random.default_rng(self.seed)
                wanted = (rng.permutation(len(data.x))[:SETTLE] for _ in range(SETTLE_BATCHES))
                samples = (whole.sample(nodes, recipe.sizes, rng) for nodes in wanted)
                settle_batch_norm(model, samples, lambda s: model.on_sample(data.x[s.nodes], whole.degree[s.nodes], s))
            logits = infer(model, data.x, whole)
            return {"validation": score(logits, data, data.valid), "test": score(logits, data, data.test)}

        def on_epoch(history: list[dict[str, Any]]) -> None:
            if parallel.rank() == 0:
                write_history(self.folder, history)
                if self.tensorboard:
                    write_events(self.folder, history)

        fit(
            model,
            optimizer,
            name,
            stage=stage,
            epochs=recipe.epochs,
            steps=steps,
            batches=batches,
            step=lambda sample: train_step(model, optimizer, sample, data, whole.degree, teacher),
            measure=measure,
            rate=lambda epoch, step: recipe.rate,
            scored="validation",
            best="validation",
            state=self.state,
            history=self.history,
            on_epoch=on_epoch,
            save_every=self.save_every,
        )
        model.eval()
