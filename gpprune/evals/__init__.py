"""How good a pruned model is: text, perplexity, fitness."""

from .allocation_fitness import AllocationFitness as AllocationFitness
from .allocation_fitness import JointFitness as JointFitness
from .fitness import MetricFitness as MetricFitness
from .perplexity import Judgement as Judgement
from .perplexity import WindowLoss as WindowLoss
from .perplexity import judge as judge
from .perplexity import window_losses as window_losses
from .precision import compute_dtype as compute_dtype
from .text import PACKAGED as PACKAGED
from .text import SPLITS as SPLITS
from .text import calibration_samples as calibration_samples
from .text import read_text as read_text
from .text import tokenize as tokenize
from .text import windows as windows
