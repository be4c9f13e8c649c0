"""Tasks: a model joined with its losses."""
