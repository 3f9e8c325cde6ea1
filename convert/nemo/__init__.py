"""NeMo archives: a `.nemo` file or its unpacked folder, read as a Hugging Face model folder."""
