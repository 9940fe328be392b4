"""The `gpprune` command: thin typer commands over the other rooms."""

from .main import run as run
