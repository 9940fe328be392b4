"""C++ of gpprune's own: built once, kept in the cache folder, run on several threads."""
