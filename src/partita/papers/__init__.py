"""One file a paper, in a folder per family: its parts, its recipes, its claim."""
