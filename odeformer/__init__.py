"""Continuous-depth transformers: a transformer layer is one step of an ODE solver.

The hidden state moves through depth t by dy/dt = attention(norm(y)) + mlp(norm(y)); the solver
determines which architecture that becomes. Source: Zhong, Zhang, Chakraborty, Dey, 'A Neural ODE
Interpretation of Transformer Layers', 2022, arXiv 2212.06011.
"""

from odeformer import checks, errors
from odeformer.errors import warn_about_namesake
from odeformer.models import flops, presets, resolution
from odeformer.models.checks import check_computable
from odeformer.models.generate import STOPPED, GenerateOptions, generate, stream
from odeformer.models.lm import LM, LMConfig
from odeformer.models.registry import ModelConfig, example_inputs, example_sizes, make_model
from odeformer.models.resolution import project, refine
from odeformer.models.text import TextClassifier, TextConfig
from odeformer.models.vit import ViT, ViTConfig
from odeformer.ode import solvers
from odeformer.ode.integrate import integrate
from odeformer.ode.problem import Solution, VectorField
from odeformer.transformer import lora, sharding, terms
from odeformer.transformer.config import DepthConfig, RegularisedDepth
from odeformer.transformer.counts import sow_counts
from odeformer.transformer.depth import ODEStack
from odeformer.transformer.field import TransformerField, make_vector_field
from odeformer.transformer.state import Context

warn_about_namesake()

__all__ = [
    "LM",
    "STOPPED",
    "Context",
    "DepthConfig",
    "GenerateOptions",
    "LMConfig",
    "ModelConfig",
    "ODEStack",
    "RegularisedDepth",
    "Solution",
    "TextClassifier",
    "TextConfig",
    "TransformerField",
    "VectorField",
    "ViT",
    "ViTConfig",
    "check_computable",
    "checks",
    "errors",
    "example_inputs",
    "example_sizes",
    "flops",
    "generate",
    "integrate",
    "lora",
    "make_model",
    "make_vector_field",
    "presets",
    "project",
    "refine",
    "resolution",
    "sharding",
    "solvers",
    "sow_counts",
    "stream",
    "terms",
]
