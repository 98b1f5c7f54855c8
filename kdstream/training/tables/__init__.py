"""The papers' tables and figures as data: read, expanded to recipes, run, and compared with what was printed."""
