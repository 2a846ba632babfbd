"""Folders of small images, a folder per class."""

from PIL import Image

SIZES = {"cat": 14, "dog": 6}


def draw(path, size=(8, 8), colour=(200, 100, 50), mode="RGB"):
    """A file of one colour, but for its first pixel."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, colour)
    image.putpixel((0, 0), (0, 255, 0))
    image.convert(mode).save(path)


def make_photos(root, sizes=SIZES, size=(8, 8), split=""):
    for label, number in sizes.items():
        for i in range(number):
            draw(
                root / split / label / f"{label}{i:03}.png",
                size,
                (10 * i, ord(label[0]), 250 - 10 * i),
            )
    return root
