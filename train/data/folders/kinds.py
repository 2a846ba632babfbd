"""What the files of a folder hold, in the words of messages."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is labelled.

    Attributes:
      one: what an example is called.
      column: of a table, what holds an example: the path of its file, or itself.
      remedy: says which folders and tables are accepted.
      readable: says which files are.
    """

    one: str
    column: str
    remedy: str
    readable: str

    @property
    def article(self) -> str:
        """'an image', 'a text'."""
        return f"a{'n' * (self.one[0] in 'aeiou')} {self.one}"

    @property
    def many(self) -> str:
        """What examples are called."""
        return f"{self.one}s"


IMAGES = Kind(
    one="image",
    column="file",
    remedy="give a folder that holds a folder of images per class, such as photos/cat/1.jpg and "
    "photos/dog/2.jpg, or a CSV with the columns file and label",
    readable="give files that Pillow opens, such as JPEG and PNG",
)
TEXTS = Kind(
    one="text",
    column="text",
    remedy="give a folder that holds a folder of texts per class, such as reviews/good/1.txt and "
    "reviews/bad/2.txt, or a CSV with the columns text and label",
    readable="give files of text in UTF-8 that are not empty",
)
