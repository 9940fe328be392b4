"""From formula to kernel, and from formula to what a person reads."""

from .behaviour import behaviour as behaviour
from .cache import cache_folder as cache_folder
from .kernels import Kernel as Kernel
from .kernels import choose as choose
from .kernels import kernel as kernel
from .program import Program as Program
from .program import lower as lower
from .render import FORMATS as FORMATS
from .render import render as render
