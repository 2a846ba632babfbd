"""Folders of short texts, a folder per class; one word tells the class."""

SIZES = {"bad": 8, "good": 14}
WORDS = {"bad": "awful", "good": "lovely"}


def note(label, number):
    """The text of a note."""
    return f"A {WORDS.get(label, label)} film, seen on evening {number}."


def make_notes(root, sizes=SIZES, split=""):
    """Writes notes as files, a folder per class, and returns the folder."""
    for label, number in sizes.items():
        folder = root / split / label
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(number):
            (folder / f"{label}{i:03}.txt").write_text(note(label, i))
    return root
