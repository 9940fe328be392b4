"""The losses by name, and those of tasks, which are named by what they ask."""

from __future__ import annotations

from gpprune.evals.losses.divergence import KL
from gpprune.evals.losses.loss import Loss
from gpprune.evals.losses.next_token import NEXT_TOKEN
from gpprune.evals.losses.reconstruction import RECONSTRUCTION
from gpprune.evals.tasks.margin import TASK, task_loss
from gpprune.tables import Table


class Losses(Table[Loss]):
    """Losses by name; ``task:piqa+hellaswag`` is of these tasks."""

    def find(self, name: str) -> Loss:
        """The loss of a name.

        Raises:
            UsageError: there is none; the message says which there are. Or no such task.
        """
        of_tasks = name.startswith(TASK) and name not in self
        return task_loss(name) if of_tasks else super().find(name)


LOSSES = Losses("loss", [NEXT_TOKEN, KL, RECONSTRUCTION])
