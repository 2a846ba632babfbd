"""Continuous-depth transformers: a transformer layer is one step of an ODE solver.

The hidden state moves through depth t by dy/dt = attention(norm(y)) + mlp(norm(y)); the solver
alone says which architecture that becomes. Source: Zhong, Zhang, Chakraborty, Dey, 'A Neural ODE
Interpretation of Transformer Layers', 2022, arXiv 2212.06011.
"""

from odeformer import flops, presets, solvers
from odeformer.depth import DepthConfig, ODEStack
from odeformer.fields import TransformerField, make_vector_field
from odeformer.generate import generate
from odeformer.integrate import integrate
from odeformer.lm import LM, LMConfig
from odeformer.models import example_inputs, make_model
from odeformer.problem import Solution, VectorField
from odeformer.text import TextClassifier, TextConfig
from odeformer.vit import ViT, ViTConfig

__all__ = [
    "LM",
    "DepthConfig",
    "LMConfig",
    "ODEStack",
    "Solution",
    "TextClassifier",
    "TextConfig",
    "TransformerField",
    "VectorField",
    "ViT",
    "ViTConfig",
    "example_inputs",
    "flops",
    "generate",
    "integrate",
    "make_model",
    "make_vector_field",
    "presets",
    "solvers",
]
