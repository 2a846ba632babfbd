"""Names of earlier versions: what stands in stored runs, and what it is called now."""

from collections.abc import Mapping

# Arrays of a checkpoint, by the names of `leaf_name`.
STATE: Mapping[str, str] = {"guard/in_a_row": "guard/consecutive"}

# Fields of the position in a checkpoint's metadata.
POSITION: Mapping[str, str] = {"order": "shuffle"}
