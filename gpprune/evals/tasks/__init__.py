"""Tasks that the papers judge pruned models by, asked through lm-eval."""

from .accuracy import Mean as Mean
from .accuracy import above_chance as above_chance
from .accuracy import accuracy as accuracy
from .accuracy import difference as difference
from .accuracy import guessing as guessing
from .answers import Answers as Answers
from .harness import Marks as Marks
from .harness import ask as ask
from .quiz import DOCUMENTS as DOCUMENTS
from .quiz import Quiz as Quiz
from .quiz import quizzes as quizzes
from .table import GROUPS as GROUPS
from .table import NORMALISED as NORMALISED
from .table import TASKS as TASKS
from .table import Task as Task
from .table import named_tasks as named_tasks
