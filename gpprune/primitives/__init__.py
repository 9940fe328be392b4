"""The formula language: value types, primitives, formula text, the published formulas."""

from .formula import Formula as Formula
from .formula import parse as parse
from .language import LANGUAGES as LANGUAGES
from .language import METRIC as METRIC
from .language import Language as Language
from .nodes import FormulaError as FormulaError
from .nodes import Node as Node
from .nodes import fold as fold
from .nodes import number_text as number_text
from .pruner_zero import parse_pruner_zero as parse_pruner_zero
from .published import METRICS as METRICS
from .published import Published as Published
from .published import published as published
from .table import PRIMITIVES as PRIMITIVES
from .table import TERMINALS as TERMINALS
from .table import Primitive as Primitive
from .types import Constant as Constant
from .types import Elements as Elements
from .types import Inputs as Inputs
from .types import Outputs as Outputs
from .types import ValueType as ValueType
from .types import axes_of as axes_of
