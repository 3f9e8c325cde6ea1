"""What a model is worth: figures by which precisions are chosen."""
