"""How good a pruned model is: texts, losses, fitnesses."""

from .allocated import AllocationMasking as AllocationMasking
from .allocated import JointMasking as JointMasking
from .evaluation import Evaluation as Evaluation
from .evaluation import evaluate as evaluate
from .evaluation import window_losses as window_losses
from .fitness import ModelFitness as ModelFitness
from .fitness import copy_as as copy_as
from .in_order import RECIPE as RECIPE
from .in_order import RecipeFitness as RecipeFitness
from .in_order import judging_update as judging_update
from .losses import LOSSES as LOSSES
from .losses import NEXT_TOKEN as NEXT_TOKEN
from .losses import Loss as Loss
from .masking import Masking as Masking
from .masking import MetricMasking as MetricMasking
from .next_token import WindowLoss as WindowLoss
from .precision import compute_dtype as compute_dtype
from .text import PACKAGED as PACKAGED
from .text import SPLITS as SPLITS
from .text import TEXT_SOURCES as TEXT_SOURCES
from .text import TextSource as TextSource
from .text import calibration_samples as calibration_samples
from .text import read_text as read_text
from .text import settled as settled
from .text import tokenize as tokenize
from .text import windows as windows
