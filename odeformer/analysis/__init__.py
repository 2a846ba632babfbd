"""What a flow does to its states; `import odeformer` does not import it."""

from odeformer.analysis.oversmoothing import Similarity, similarity
from odeformer.analysis.trajectories import trajectory

__all__ = ["Similarity", "similarity", "trajectory"]
