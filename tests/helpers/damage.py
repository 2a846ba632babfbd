"""Damages to the files of a folder, and what the folder holds."""

import os
import re
import shutil

import numpy as np


def files(folder):
    """The files below a folder, each as a path in it."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def contents(folder):
    """Everything below a folder: {path: its content, or None of a folder}."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def damage(folder, kind, name, *how):
    """Does one damage below a folder: flips a byte, cuts a file off, deletes or empties."""
    path = folder / name
    if kind == "flip":
        place, mask = how
        content = bytearray(path.read_bytes())
        content[place] ^= mask
        path.write_bytes(content)
    elif kind == "cut":
        os.truncate(path, how[0])
    elif path.is_file():
        path.unlink()
    else:
        shutil.rmtree(path)
        if kind == "empty":
            path.mkdir()


def flips(folder, count, seed):
    """Random flips of a byte: half of them of files drawn by size, half of any file alike."""
    rng, names = np.random.default_rng(seed), files(folder)
    sizes = np.array([(folder / name).stat().st_size for name in names])
    chosen = rng.choice(names, count // 2, p=sizes / sizes.sum())
    chosen = [*chosen, *rng.choice(names, count - count // 2)]
    return [flip(folder, str(name), rng) for name in chosen]


def flip(folder, name, rng):
    size = (folder / name).stat().st_size
    return "flip", name, int(rng.integers(size)), int(rng.integers(1, 256))


def cut(folder, name, rng):
    return "cut", name, int(rng.integers((folder / name).stat().st_size))


def kinds(folder):
    """One file of each kind."""
    by_kind = {re.sub(r"[0-9a-f]{32}", "*", name): name for name in files(folder)}
    return list(by_kind.values())


def cuts(folder, rng):
    """Files cut off anywhere, files emptied, files and folders deleted; 50 or more in all."""
    names = files(folder)
    cases = [cut(folder, str(name), rng) for name in rng.choice(names, 20)]
    cases += [("cut", str(name), 0) for name in rng.choice(names, 10)]
    cases += [("delete", name) for name in names]
    folders = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_dir()]
    return cases + [("delete", name) for name in folders] + [("empty", name) for name in folders]
