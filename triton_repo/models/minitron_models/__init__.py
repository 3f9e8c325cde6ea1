"""What the Python models of a repository share; a copy lies beside each model.py."""
