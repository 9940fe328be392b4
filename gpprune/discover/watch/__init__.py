"""A search from outside: how far it is, and a page that tells what became of it."""

from .page import write_page as write_page
from .status import RunStatus as RunStatus
from .status import run_status as run_status
