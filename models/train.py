"""Training: `python -m bgnn.models.train dgcnn --config models/configs/... --data DIR`, the papers' rows by name.

    dgcnn --config FILE --data DIR    a row of the binary GNN paper's Tables 1, 2 and 8
    sage --config FILE --data ROOT    a row of its Table 3: GraphSAGE, BinSAGE, GCN
    dgcnn --arch bf2 --out model.pt   the same stages by options, on procedural solids or h5 files (also `shapes`)
    dq, dq-table                      the Degree-Quant networks: bgnn.models.dq.command

The cascade (section 3): a real-valued DGCNN, then stages 1, 2 and 3 of the binary network, each taught by the one
before it, through its logits and, if asked for, its local structures. With `--arch`, a step whose number of epochs is 0
is left out, so `--epochs 0 0 0 20` trains from scratch and `--epochs 10 0 0 20` distils directly; there, one cosine
schedule per step takes the place of the paper's halvings (runs are short), and an unfinished step is not kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bgnn.models import parallel
from bgnn.models.card import write_card
from bgnn.models.cascade import train_cascade, train_stage
from bgnn.models.checkpoint import build_model, load_checkpoint, save_checkpoint, settings_of
from bgnn.models.clouds import Clouds, load_clouds
from bgnn.models.curves import events_writer
from bgnn.models.modelnet import load_h5
from bgnn.models.node_data import load_nodes
from bgnn.models.nodes import train_nodes
from bgnn.models.recipes import CloudRecipe, read_config
from bgnn.models.shapes import HELD_OUT_SEED, SHAPES, make_clouds

DECAY = 1e-5  # stages 1 and 2; none for binary weights
#: Options of `dgcnn` that go with --config, and those that a configuration states itself.
_WITH_CONFIG = ("data", "folder", "set", "seeds", "teacher", "tensorboard", "licence")


def main(arguments: list[str] | None = None) -> None:
    """The command line; `--help` lists the options."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.family in ("dq", "dq-table"):
        if options.family == "dq" and options.config is None and None in (options.dataset, options.model):
            parser.error("say --config FILE, or --dataset and --model")
        try:
            from bgnn.models.dq import command

            command.train(options) if options.family == "dq" else command.table(options)
        except (ValueError, OSError, ImportError) as error:
            parser.exit(1, f"{parser.prog}: {error}\n")
        return
    if options.family == "sage":
        pass
    elif options.config is not None:
        _check_config_options(parser, options)
    elif options.arch is None or options.out is None:
        parser.error("say --config FILE, or --arch and --out")
    elif given := [name for name in _WITH_CONFIG if getattr(options, name)]:
        parser.error(f"--{given[0]} goes with --config")
    elif (options.train is None) != (options.test is None):
        parser.error("--train and --test go together")
    elif not options.out.parent.is_dir():
        parser.error(f"--out: no folder {options.out.parent}")
    torch.set_flush_denormal(True)
    try:
        with parallel.processes():
            _by_config(options) if options.config is not None else _by_options(options)
    except (ValueError, OSError, ImportError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    finally:
        torch.set_flush_denormal(False)  # it holds for the process, not for PyTorch alone


def _check_config_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """A configuration states the network and its training: what else is given would have no effect."""
    defaults = _parser().parse_args(["dgcnn"])
    for name, value in vars(options).items():
        if name not in ("config", "family", *_WITH_CONFIG) and value != getattr(defaults, name):
            parser.error(f"--{name.replace('_', '-')} with --config: say --set KEY=VALUE in its place")
    if len(set(options.seeds)) < len(options.seeds):
        parser.error("--seeds: each once")


def _by_config(options: argparse.Namespace) -> None:
    """Trains a configuration, all seeds one after the other, and writes the model card."""
    config = read_config(options.config, options.set)
    recipe = config.recipe
    if recipe.command != ("sage" if options.family == "sage" else "dgcnn"):
        raise ValueError(f"{options.config}: of kind {recipe.kind!r}, which the command {recipe.command} trains")
    if options.tensorboard:
        events_writer()
    if isinstance(recipe, CloudRecipe):
        clouds = load_clouds(options.data, recipe.points)
        what = clouds.about
    else:
        nodes = load_nodes(recipe.data, options.data or Path("data"))
        what = f"{nodes.what}, {len(nodes.x)} nodes, {nodes.edge_index.shape[1]} edges; "
        what += "mean ROC AUC" if nodes.multi_label else "accuracies"
        what += f" in percent on its {len(nodes.test)} test nodes, of the epoch with the best validation score"
    folder = options.folder or Path("out/train") / config.name
    seeds = options.seeds or [0]
    results: dict[str, list[float]] = {}
    for seed in seeds:
        own = folder / f"seed{seed}"
        if isinstance(recipe, CloudRecipe):
            done = train_cascade(recipe, clouds, own, seed, teacher=options.teacher, tensorboard=options.tensorboard)
        else:
            done = train_nodes(recipe, nodes, own, seed, tensorboard=options.tensorboard)
        for name, value in done.items():
            results.setdefault(name, []).append(100 * value)
        if parallel.rank() == 0:
            print(f"wrote {own}/model.pt", flush=True)
    if parallel.rank() == 0:
        print(write_card(folder, config, what, seeds, results, options.licence))
        print(f"wrote {folder}/card.md")


def _by_options(options: argparse.Namespace) -> None:
    """Trains the steps of `options.epochs` one after the other."""
    torch.manual_seed(options.seed)
    fixed = None if options.train is None else load_h5(options.train, options.points)
    data = Clouds(fixed, options.seed, count=options.clouds, num_points=options.points)
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
        train_stage(
            model,
            "dgcnn" if stage == 0 else f"{options.arch} stage {stage}",
            data,
            held_out,
            epochs=epochs,
            batch=options.batch,
            rate=options.rate[stage],
            decay=DECAY if stage < 3 else 0.0,
            teacher=previous,
            stage=stage,
        )
        # After every step: an interrupted run leaves the last finished one, and `--start` goes on from it.
        save_checkpoint(options.out, model, compact=options.compact)
        print(f"wrote {options.out}", flush=True)
        previous = model


def _add_config_options(add: Callable[..., Any], data: str) -> None:
    add("--data", type=Path, help=f"of --config: {data}")
    add("--folder", type=Path, help="of --config: where the run is kept, and goes on from (default: out/train/NAME)")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of --config: in place of the file's")
    add("--seeds", type=int, nargs="+", default=[], help="of --config: one run each (default: 0)")
    add("--tensorboard", action="store_true", help="of --config: events beside the curves")
    add("--licence", default="", help="of --config: of the data, for the model card")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bgnn.models.train", description="Training of the papers' networks."
    )
    sub = parser.add_subparsers(dest="family", required=True)
    add = sub.add_parser(
        "dgcnn", aliases=["shapes"], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    ).add_argument
    add("--config", type=Path, help="a configuration, models/configs/*.json; with the options up to --licence")
    add(
        "--data", type=Path, help="of --config: .h5 files, voxels or meshes (see clouds.py); without, procedural solids"
    )
    add("--folder", type=Path, help="of --config: where the run is kept, and goes on from (default: out/train/NAME)")
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of --config: in place of the file's")
    add("--seeds", type=int, nargs="+", default=[], help="of --config: one run each (default: 0)")
    add("--teacher", type=Path, help="of --config: a trained network in place of its stage and those before")
    add("--tensorboard", action="store_true", help="of --config: events beside the curves")
    add("--licence", default="", help="of --config: of the data, for the model card")
    add("--arch", choices=("dgcnn", "rf", "bf1", "bf2"), help="in place of --config")
    add("--out", type=Path, help="of --arch: the model.pt to write")
    add("--epochs", type=int, nargs=4, default=[4, 4, 4, 12], metavar=("DGCNN", "STAGE1", "STAGE2", "STAGE3"))
    add("--rate", type=float, nargs=4, default=[1e-3, 1e-3, 2.5e-4, 1e-3], help="learning rates of the same")
    add("--start", type=Path, help="a model.pt that the first step learns from, in place of training it here")
    add("--train", help="an .h5 file or a folder of them, as ModelNet40; without it, procedural solids")
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
    add = sub.add_parser("sage", help="GraphSAGE, BinSAGE and GCN: Table 3 of the binary GNN paper").add_argument
    add("--config", type=Path, required=True, help="a configuration, models/configs/*.json")
    _add_config_options(add, "folder of local raw files, else where they are downloaded to (default: data)")
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
