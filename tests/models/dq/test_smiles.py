"""ZINC's files from SMILES."""

from __future__ import annotations

import pytest
import torch

from bgnn.models.dq import smiles
from bgnn.models.dq.data import load_graphs


def test_kinds_of_atoms_are_the_benchmarks_28():
    assert len(smiles.ATOMS) == len(set(smiles.ATOMS)) == 28
    assert [smiles.kind_of(*atom) for atom in (("C", 0, 0), ("N", 1, 0), ("N", 1, 1), ("O", 0, -1))] == [0, 2, 8, 7]
    with pytest.raises(ValueError, match="an atom of Xe"):
        smiles.kind_of("Xe", 0, 0)


def test_files_that_the_loader_reads(tmp_path, monkeypatch, capsys):
    """`molecule` has a stand-in: chains of carbon, the label the length."""

    def chain(line):
        bonds = torch.zeros(len(line), len(line), dtype=torch.int64)
        place = torch.arange(len(line) - 1)
        bonds[place, place + 1] = bonds[place + 1, place] = 1
        label = torch.tensor([float(len(line))])
        return {"atom_type": torch.zeros_like(bonds[0]), "bond_type": bonds, "logP_SA_cycle_normalized": label}

    monkeypatch.setattr(smiles, "molecule", chain)
    (tmp_path / "a.txt").write_text("CC\nCCC\n\nCCCC\n")
    (tmp_path / "b.txt").write_text("CCCCC some name\nCCCCCC\n")
    smiles.main([*(str(tmp_path / name) for name in ("a.txt", "b.txt")), "--out", str(tmp_path), "--sizes", *"212"])
    assert "5 molecules; labels 4.000" in capsys.readouterr().out
    graphs, folds = load_graphs("zinc", tmp_path)
    assert folds == [([0, 1], [2], [3, 4])]
    assert sorted(g.y.item() for g in graphs) == [2, 3, 4, 5, 6]
    assert all(g.edge_index.shape[1] == 2 * (len(g.x) - 1) for g in graphs)
    with pytest.raises(SystemExit) as error:
        smiles.main([str(tmp_path / "a.txt"), "--out", str(tmp_path / "other")])
    assert error.value.code == 1
    assert "12000 molecules wanted of 3 lines" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_labels_by_rdkit():
    pytest.importorskip("rdkit")
    benzene = smiles.molecule("c1ccccc1")
    assert benzene["atom_type"].tolist() == [0] * 6
    assert sorted(benzene["bond_type"].triu().unique().tolist()) == [0, 1, 2]
    # logP 1.6866 and a synthetic accessibility of 1 are RDKit's; no ring has more than six atoms.
    assert benzene["logP_SA_cycle_normalized"].item() == pytest.approx(
        (1.6866 - 2.45710) / 1.43432 + (-1 + 3.05258) / 0.83352 + 0.04857 / 0.28602, abs=0.01
    )
    with pytest.raises(ValueError, match="is no molecule to RDKit"):
        smiles.molecule("C1CC")
