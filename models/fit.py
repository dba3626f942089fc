"""The loop of all training here: epochs of steps, a rate for each, a state to go on from, and what was measured."""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bgnn.models import parallel
from bgnn.models.optim import clip_and_center

WARM_STEPS = 100  # of the schedule "cosine": the first steps of a binary network are wild
#: Steps between two writes of the state within an epoch. It is written after each epoch as well.
SAVE_EVERY = 50


def rate_at(schedule: str, rate: float, epoch: int, epochs: int, step: int, steps: int, halve_every: int) -> float:
    """The learning rate at a step (section 5.2): of `steps` in an epoch, of `epochs`; both counted from 0."""
    if schedule == "cosine":
        warm = min(1.0, (epoch * steps + step + 1) / WARM_STEPS)
        return rate * warm * (0.5 + 0.5 * math.cos(math.pi * (epoch + step / steps) / epochs))
    halvings = epoch // halve_every if schedule == "every" else (2 * epoch >= epochs) + (4 * epoch >= 3 * epochs)
    return rate * 0.5**halvings


class State:
    """`state.pt` of a run: what a stage needs to go on from in the middle. Without a folder nothing is kept.

    Raises ValueError, one line, where the file is of another run or damaged.
    """

    def __init__(self, folder: Path | None, fingerprint: str) -> None:
        self.path = None if folder is None else folder / "state.pt"
        self.fingerprint = fingerprint
        self.content: dict[str, Any] = {}
        if self.path is None or not self.path.is_file():
            return
        try:
            self.content = torch.load(self.path, map_location="cpu", weights_only=True)
            known = self.content["fingerprint"]
        except Exception as error:  # many readers raise many kinds
            raise ValueError(f"{self.path}: damaged; remove it, and the stage begins anew") from error
        if known != fingerprint:
            raise ValueError(
                f"{self.path} is of another configuration or other data: give another --folder, or remove this one"
            )
        if len(self.content.get("random", [0])) != parallel.count():
            raise ValueError(f"{self.path}: begun in {len(self.content['random'])} processes, not {parallel.count()}")

    def write(self, **content: Any) -> None:
        """Replaces the file, all or nothing, by process 0."""
        content |= {"fingerprint": self.fingerprint, "random": parallel.gather(torch.get_rng_state())}
        if self.path is not None and parallel.rank() == 0:
            partial = self.path.with_suffix(".partial")
            torch.save(content, partial)
            os.replace(partial, self.path)


def check_folder(path: Path, fingerprint: str) -> None:
    """Keeps what the folder's run is of; raises ValueError where it is of another."""
    if path.is_file():
        if path.read_text() != fingerprint:
            raise ValueError(
                f"{path.parent} holds a run of another configuration or other data: "
                "give another --folder, or remove this one"
            )
    elif parallel.rank() == 0:
        path.write_text(fingerprint)
    parallel.wait()


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    name: str,
    *,
    stage: int,
    epochs: int,
    steps: int,
    batches: Callable[[int], Iterable[Any]],
    step: Callable[[Any], tuple[float, float]],
    measure: Callable[[], dict[str, float]],
    rate: Callable[[int, int], float],
    scored: str,
    best: str = "",
    state: State | None = None,
    history: list[dict[str, Any]] | None = None,
    on_epoch: Callable[[list[dict[str, Any]]], None] = lambda history: None,
    save_every: int = SAVE_EVERY,
) -> None:
    """Trains `model` in place, one progress line per epoch, from where `state` says it was.

    `batches(epoch)` gives `steps` of them, the same each time; `step` returns the loss and the training score of one;
    `measure` is called after each epoch, and `rate(epoch, step)` before each step: of parameter groups with a "factor",
    times that. The progress line shows `scored`.
    `best`: in the end the model is that of the epoch where this measured value was highest. `history` gets an entry per
    epoch and goes to `on_epoch`. Raises ValueError, one line, on a loss that is no number.
    """
    history = [] if history is None else history
    begun = state.content if state is not None and state.content.get("stage") == stage else {}
    first, done, sums, highest = 0, 0, [0.0, 0.0], -math.inf
    kept: dict[str, Any] = {}
    if begun:
        model.load_state_dict(begun["model"])
        optimizer.load_state_dict(begun["optimizer"])
        first, done, sums = begun["epoch"], begun["step"], list(begun["sums"])
        highest, kept = begun["highest"], begun["kept"]
        history[:] = begun["history"]
        torch.set_rng_state(begun["random"][parallel.rank()])
        say(f"{name} goes on at epoch {first + 1}, step {done + 1}")

    def save(epoch: int, step: int) -> None:
        if state is not None:
            parallel.average_statistics(model)  # the file has one process's
            parts: dict[str, Any] = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "history": history,
            }
            parts |= {"highest": highest, "kept": kept}
            state.write(stage=stage, epoch=epoch, step=step, sums=sums, **parts)

    for epoch in range(first, epochs):
        start = time.perf_counter()
        model.train()
        for number, batch in enumerate(batches(epoch)):
            if number < done:
                continue
            for group in optimizer.param_groups:
                group["lr"] = rate(epoch, number) * group.get("factor", 1.0)
            try:
                measured = step(batch)
            except ValueError as error:
                where = f" The state before is in {state.path}." if state is not None and state.path else ""
                raise ValueError(
                    f"{name}, epoch {epoch + 1}, step {number + 1}: {error} at rate {group['lr']:.2g}; lower it.{where}"
                ) from error
            sums = [a + b for a, b in zip(sums, measured, strict=True)]
            if (number + 1) % save_every == 0 and number + 1 < steps:
                save(epoch, number + 1)
        parallel.average_statistics(model)
        seen = measure()
        entry: dict[str, Any] = {
            "stage": name,
            "epoch": epoch + 1,
            "loss": sums[0] / steps,
            "training accuracy": sums[1] / steps,
        }
        history.append(entry | seen)
        if best and seen[best] > highest:
            highest, kept = seen[best], copy.deepcopy(model.state_dict())
        loss, done, sums = sums[0] / steps, 0, [0.0, 0.0]
        save(epoch + 1, 0)
        on_epoch(history)
        took = f"{time.perf_counter() - start:.0f} s"
        say(f"{name} epoch {epoch + 1}/{epochs}: loss {loss:.3f}, {scored} {seen[scored]:.3f}, {took}")
    if kept:
        model.load_state_dict(kept)


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    """One step of an optimiser down a loss of one element, which is returned; binary weights end in [-1, 1], centred.

    Raises ValueError where it is not finite.
    """
    if not math.isfinite(loss.item()):
        raise ValueError(f"the loss is {loss.item()}")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parallel.average_gradients(model)
    optimizer.step()
    clip_and_center(model)
    return loss.item()


@torch.no_grad()
def settle_batch_norm(model: nn.Module, batches: Iterable[Any], run: Callable[[Any], Any] | None = None) -> None:
    """Takes the BatchNorms' running statistics anew: the mean over `batches`, at fixed weights.

    `run`: what a batch goes through, if it is not the model itself.

    Running averages lag behind binary weights, which flip up to the end.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.train()
        norm.momentum = None  # the plain mean over all batches
    for batch in batches:
        (run or model)(batch)
    for norm in norms:
        norm.momentum = 0.1
        norm.eval()


def say(text: str) -> None:
    """Prints a line of progress, in one of the processes."""
    if parallel.rank() == 0:
        print(text, flush=True)
