"""ZINC with labels computed by RDKit: `python -m bgnn.models.dq.smiles valid.txt test.txt --out ROOT`.

For when the published files, which have the labels, cannot be had: molecules as SMILES, one a line, become the raw
files that `dq --dataset zinc --root ROOT` reads (`ROOT/ZINC/raw/train.pickle`, `train.index`, ...). The label is the
penalised logP of the ZINC-250k benchmark, normalised by that set's means and deviations (those of You et al.'s code):

    z(logP) + z(-synthetic accessibility) + z(-cycle)       cycle: atoms beyond six in the largest ring

RDKit's version differs from the published labels', and its rings are a smallest set of them where the original took any
cycle basis: figures compare with one another, and only roughly with the paper's. Needs `pip install rdkit`.
"""

from __future__ import annotations

import argparse
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

#: Mean and deviation over ZINC-250k of the three terms.
NORMAL = {"logp": (2.4570953396190123, 1.434324401111988)}
NORMAL |= {"sa": (-3.0525811293166134, 0.8335207024513095), "cycle": (-0.0485696876403053, 0.2860212110245455)}
#: Kinds of atoms: element, hydrogens written out, charge.
ATOMS = (
    *("C", "O", "N", "F", "C H1", "S", "Cl", "O -", "N H1 +", "Br", "N H3 +", "N H2 +", "N +", "N -", "S -", "I", "P"),
    *("O H1 +", "N H1 -", "O +", "S +", "P H1", "P H2", "C H2 -", "P +", "S H1 +", "C H1 -", "P H1 +"),
)


def kind_of(element: str, hydrogens: int, charge: int) -> int:
    """The place in ATOMS, hydrogens or charge left out if need be. Raises ValueError on another element."""
    written = f" H{hydrogens}" if hydrogens else ""
    sign = (" +" if charge > 0 else " -") if charge else ""
    for name in (element + written + sign, element + sign, element):
        if name in ATOMS:
            return ATOMS.index(name)
    raise ValueError(f"an atom of {element}; known are {', '.join(a for a in ATOMS if ' ' not in a)}")


def molecule(smiles: str) -> dict[str, torch.Tensor]:
    """One molecule in the form of the published files. Raises ValueError where RDKit or ATOMS does not know it."""
    from rdkit import Chem
    from rdkit.Chem import Crippen, RDConfig

    sys.path.append(f"{RDConfig.RDContribDir}/SA_Score")
    try:
        import sascorer
    finally:
        sys.path.pop()
    mol = Chem.MolFromSmiles(smiles)
    if mol is None or not mol.GetNumAtoms():
        raise ValueError(f"{smiles[:60]!r} is no molecule to RDKit")
    largest = max((len(ring) for ring in mol.GetRingInfo().AtomRings()), default=0)
    terms = {"logp": Crippen.MolLogP(mol), "sa": -sascorer.calculateScore(mol), "cycle": -max(0, largest - 6)}
    label = sum((value - NORMAL[name][0]) / NORMAL[name][1] for name, value in terms.items())
    atoms = [kind_of(a.GetSymbol(), a.GetNumExplicitHs(), a.GetFormalCharge()) for a in mol.GetAtoms()]
    bonds = torch.zeros(len(atoms), len(atoms), dtype=torch.int64)
    order = {"SINGLE": 1, "DOUBLE": 2, "TRIPLE": 3, "AROMATIC": 1}
    Chem.Kekulize(mol, clearAromaticFlags=True)
    for bond in mol.GetBonds():
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        bonds[i, j] = bonds[j, i] = order.get(str(bond.GetBondType()), 1)
    return {
        "atom_type": torch.tensor(atoms),
        "bond_type": bonds,
        "logP_SA_cycle_normalized": torch.tensor([label], dtype=torch.float32),
    }


def write(lines: Sequence[str], sizes: Sequence[int], root: Path, seed: int) -> list[Any]:
    """Draws so many molecules for train, val and test, no line twice, and writes their files. Returns the labels.

    Raises ValueError in one line, before anything is written.
    """
    if sum(sizes) > len(lines):
        raise ValueError(f"{sum(sizes)} molecules wanted of {len(lines)} lines")
    order = np.random.default_rng(seed).permutation(len(lines))[: sum(sizes)]
    made = [molecule(lines[i]) for i in order]
    raw = root / "ZINC" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    ends = np.cumsum([0, *sizes])
    for name, start, end in zip(("train", "val", "test"), ends, ends[1:], strict=False):
        (raw / f"{name}.pickle").write_bytes(pickle.dumps(made[start:end]))
        (raw / f"{name}.index").write_text(",".join(map(str, range(end - start))) + "\n")
    return [float(one["logP_SA_cycle_normalized"]) for one in made]


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bgnn.models.dq.smiles", description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+", help="SMILES, one a line")
    parser.add_argument("--out", type=Path, required=True, help="the ROOT of dq's --root")
    parser.add_argument(
        "--sizes", type=int, nargs=3, default=[10000, 1000, 1000], help="molecules in train, val and test"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the molecules that are drawn")
    options = parser.parse_args(arguments)
    try:
        if min(options.sizes) < 1:
            raise ValueError("--sizes: one molecule at least in each part")
        lines = [line.split()[0] for file in options.files for line in file.read_text().splitlines() if line.strip()]
        labels = write(lines, options.sizes, options.out, options.seed)
    except ImportError as error:
        parser.exit(1, f"{parser.prog}: {error}: pip install rdkit\n")
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    print(f"{len(labels)} molecules; labels {np.mean(labels):.3f} ± {np.std(labels):.3f}")
    print(f"wrote {options.out}/ZINC/raw")


if __name__ == "__main__":
    main()
