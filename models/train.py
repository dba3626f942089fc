"""Training: `python -m bgnn.models.train dgcnn --arch bf2 --out model.pt` (`shapes` is another name for `dgcnn`).

The commands `dq` and `dq-table` train the Degree-Quant networks: bgnn.models.dq.command.

The multi-stage scheme of the binary GNN paper (section 3): a real-valued DGCNN, then stages 1, 2 and 3 of the
binary network, each taught by the one before it through its logits, and each binary stage starting from the
weights of the one before. A step whose number of epochs is 0 is left out, so `--epochs 0 0 0 20` trains from
scratch and `--epochs 10 0 0 20` distils directly.

Where it differs from the paper: one cosine schedule per step in place of halvings (runs are short), and no
LSP loss, whose effect the paper found inconsistent (Table 1).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bgnn.models.checkpoint import build_model, load_checkpoint, save_checkpoint, settings_of
from bgnn.models.modelnet import load_h5
from bgnn.models.optim import clip_and_center
from bgnn.models.shapes import HELD_OUT_SEED, SHAPES, make_clouds

TEMPERATURE = 3.0  # of the logits (section 5.2)
ALPHA = 0.1  # the teacher's share of the loss (section 5.2)
WEIGHT_DECAY = 1e-5  # stages 1 and 2; none for binary weights


def distillation_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Logit matching (section 3): T^2 KL(teacher || student) of softened logits, both `[B, classes]`."""
    log_s, log_t = F.log_softmax(student / TEMPERATURE, dim=1), F.log_softmax(teacher / TEMPERATURE, dim=1)
    return TEMPERATURE**2 * F.kl_div(log_s, log_t, log_target=True, reduction="batchmean")


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    points: Tensor,
    labels: Tensor,
    teacher: nn.Module | None,
) -> float:
    """One optimiser step on clouds `[B, N, 3]` with labels `[B]`; returns the loss."""
    logits = model(points)
    loss = F.cross_entropy(logits, labels)
    if teacher is not None:
        with torch.no_grad():
            target = teacher(points)
        loss = (1 - ALPHA) * loss + ALPHA * distillation_loss(logits, target)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    clip_and_center(model)
    return loss.item()


@torch.no_grad()
def accuracy(model: nn.Module, points: Tensor, labels: Tensor, batch: int = 50) -> float:
    """The share of clouds `[M, N, 3]` that `model`, put in eval mode, classifies as `labels [M]`."""
    model.eval()
    hits = sum(
        int((model(points[i : i + batch]).argmax(1) == labels[i : i + batch]).sum())
        for i in range(0, len(points), batch)
    )
    return hits / len(points)


@torch.no_grad()
def settle_batch_norm(model: nn.Module, batches: Iterable[Tensor]) -> None:
    """Takes the BatchNorms' running statistics anew: the mean over `batches` of clouds, at fixed weights.

    Running averages lag behind binary weights, which flip up to the end.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # the plain mean over all batches
    for points in batches:
        model(points)
    for norm in norms:
        norm.momentum = 0.1
        norm.eval()


class Clouds:
    """The training data: shapes made anew for each epoch, or HDF5 clouds, scaled and moved at random."""

    def __init__(self, train: str | None, count: int, num_points: int, seed: int) -> None:
        self.seed, self.count, self.num_points = seed, count, num_points
        self.fixed = None if train is None else load_h5(train, num_points)
        if self.fixed is not None:
            self.count = len(self.fixed[0])

    def epoch(self, stage: int, epoch: int, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches (points `[batch, N, 3]`, labels `[batch]`) shuffled; a smaller last one is dropped."""
        rng = np.random.default_rng([self.seed, stage, epoch])
        if self.fixed is None:
            points, labels = make_clouds(self.count, self.num_points, int(rng.integers(2**31)))
        else:
            points, labels = self.fixed
            # Scale in [2/3, 3/2] and shift by up to 0.2 per axis, as the DGCNN authors' code augments.
            scale = rng.uniform(2 / 3, 3 / 2, (len(points), 1, 3))
            points = points * scale + rng.uniform(-0.2, 0.2, scale.shape)
        order = rng.permutation(len(points))
        for start in range(0, len(order) - batch + 1, batch):
            chosen = order[start : start + batch]
            yield torch.from_numpy(points[chosen].astype(np.float32)), torch.from_numpy(labels[chosen])


def train(
    model: nn.Module,
    name: str,
    data: Clouds,
    held_out: tuple[Tensor, Tensor],
    *,
    epochs: int,
    batch: int,
    rate: float,
    decay: float,
    teacher: nn.Module | None,
    stage: int,
) -> None:
    """Trains `model` in place with Adam and a cosine schedule, one progress line per epoch.

    The BatchNorm statistics are settled at the end.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, weight_decay=decay)
    for epoch in range(epochs):
        start, losses = time.perf_counter(), []
        model.train()
        steps = data.count // batch
        for step, (points, labels) in enumerate(data.epoch(stage, epoch, batch)):
            progress = (epoch + step / steps) / epochs
            # A short rise: the first steps of a binary network are wild.
            warm = min(1.0, (epoch * steps + step + 1) / 100)
            for group in optimizer.param_groups:
                group["lr"] = rate * warm * (0.5 + 0.5 * np.cos(np.pi * progress))
            losses.append(train_step(model, optimizer, points, labels, teacher))
        print(
            f"{name} epoch {epoch + 1}/{epochs}: loss {np.mean(losses):.3f}, "
            f"held-out accuracy {accuracy(model, *held_out):.3f}, {time.perf_counter() - start:.0f} s",
            flush=True,
        )
    settle_batch_norm(model, (points for points, _ in data.epoch(stage, epochs, batch)))
    print(f"{name} settled: held-out accuracy {accuracy(model, *held_out):.3f}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """The command line; `--help` lists the options."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.family in ("dq", "dq-table"):
        try:
            from bgnn.models.dq import command

            command.train(options) if options.family == "dq" else command.table(options)
        except (ValueError, OSError, ImportError) as error:
            parser.exit(1, f"{parser.prog}: {error}\n")
        return
    if (options.train is None) != (options.test is None):
        parser.error("--train and --test go together")
    if not options.out.parent.is_dir():
        parser.error(f"--out: no folder {options.out.parent}")
    torch.set_flush_denormal(True)
    try:
        _cascade(options)
    except (ValueError, OSError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    finally:
        torch.set_flush_denormal(False)  # it holds for the process, not for PyTorch alone


def _cascade(options: argparse.Namespace) -> None:
    """Trains the steps of `options.epochs` one after the other."""
    torch.manual_seed(options.seed)
    data = Clouds(options.train, options.clouds, options.points, options.seed)
    if options.test is None:
        held = make_clouds(1000, options.points, HELD_OUT_SEED)
    else:
        held = load_h5(options.test, options.points)
    classes = len(SHAPES) if data.fixed is None else int(max(data.fixed[1].max(), held[1].max())) + 1
    held_out = torch.from_numpy(held[0]), torch.from_numpy(held[1])
    sizes = {
        "classes": classes,
        "num_points": options.points,
        "k": options.k,
        "channels": list(options.channels),
        "embedding": options.embedding,
        "mlp": list(options.mlp),
        "dropout": options.dropout,
    }
    knobs = {"knn": options.knn, "activation": options.activation}
    knobs |= {"edge_balance": options.edge_balance, "global_balance": options.global_balance}

    if not 1 <= options.batch <= data.count:
        raise ValueError(f"--batch {options.batch} of {data.count} clouds: no full batch in an epoch")
    previous = load_checkpoint(options.start) if options.start else None
    for name in ("classes", "embedding", "channels", "mlp"):
        if previous is not None and previous.config[name] != sizes[name]:
            raise ValueError(f"{options.start}: {name} is {previous.config[name]}, and {sizes[name]} here")
    for stage, epochs in enumerate(options.epochs):
        if epochs == 0 or (stage > 0 and options.arch == "dgcnn"):
            continue
        if stage == 0:
            model = build_model("dgcnn", **sizes)
        else:
            model = build_model(options.arch, stage=stage, **sizes, **knobs)
        if previous is not None and previous.architecture == options.arch == model.architecture:
            model.load_state_dict(previous.state_dict())
        train(
            model,
            "dgcnn" if stage == 0 else f"{options.arch} stage {stage}",
            data,
            held_out,
            epochs=epochs,
            batch=options.batch,
            rate=options.rate[stage],
            decay=WEIGHT_DECAY if stage < 3 else 0.0,
            teacher=previous,
            stage=stage,
        )
        # After every step: an interrupted run leaves the last finished one, and `--start` goes on from it.
        save_checkpoint(options.out, model, compact=options.compact)
        print(f"wrote {options.out}", flush=True)
        previous = model


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bgnn.models.train", description="Training of the papers' networks."
    )
    sub = parser.add_subparsers(dest="family", required=True)
    add = sub.add_parser(
        "dgcnn", aliases=["shapes"], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    ).add_argument
    add("--arch", choices=("dgcnn", "rf", "bf1", "bf2"), required=True)
    add("--out", type=Path, required=True, help="the model.pt to write")
    add("--epochs", type=int, nargs=4, default=[4, 4, 4, 12], metavar=("DGCNN", "STAGE1", "STAGE2", "STAGE3"))
    add("--rate", type=float, nargs=4, default=[1e-3, 1e-3, 2.5e-4, 1e-3], help="learning rates of the same")
    add("--start", type=Path, help="a model.pt that the first step learns from, in place of training it here")
    add("--train", help="an .h5 file or a folder of them, as ModelNet40; without it, procedural shapes")
    add("--test", help="the .h5 file or folder to measure accuracy on (with --train)")
    add("--clouds", type=int, default=6000, help="procedural clouds in an epoch; every epoch has new ones")
    add("--batch", type=int, default=32)
    add("--seed", type=int, default=0)
    add("--compact", action="store_true", help="store binary weights as int8 signs")
    sizes = settings_of("bf2")
    add("--points", type=int, default=sizes["num_points"])
    add("--k", type=int, default=sizes["k"])
    add("--embedding", type=int, default=sizes["embedding"])
    add("--channels", type=int, nargs=4, default=sizes["channels"])
    add("--mlp", type=int, nargs=2, default=sizes["mlp"])
    add("--dropout", type=float, default=sizes["dropout"])
    add("--knn", choices=("l2", "hamming"), default=sizes["knn"], help="of binary features")
    add(
        "--activation",
        choices=("prelu", "relu", "none"),
        default=sizes["activation"],
        help="of rf, bf1 and bf2",
    )
    add("--edge-balance", choices=("none", "mean", "median"), default=sizes["edge_balance"])
    add("--global-balance", choices=("none", "mean", "median"), default=sizes["global_balance"])
    try:
        from bgnn.models.dq.command import add_parsers
    except ModuleNotFoundError as error:  # torch-geometric is optional
        if error.name != "torch_geometric":
            raise
        for name in ("dq", "dq-table"):
            sub.add_parser(name, help='needs torch-geometric: pip install "bgnn-convert[pyg]"')
    else:
        add_parsers(sub)
    return parser


if __name__ == "__main__":
    main()
