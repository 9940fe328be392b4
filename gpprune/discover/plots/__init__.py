"""Pictures as functions from data to a figure of matplotlib, which a notebook shows."""

from .allocations import allocation_figure as allocation_figure
from .allocations import sharing_figure as sharing_figure
from .carried import transfer_figure as transfer_figure
from .searches import search_figure as search_figure
from .searches import summary_figure as summary_figure
from .style import check_picture as check_picture
from .style import save_figure as save_figure
