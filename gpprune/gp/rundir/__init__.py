"""A search on disk: its settings, and a database of all that it has found so far."""

from .directory import RunDirectory as RunDirectory
