"""Ways out: one model as a GGUF file or a Hugging Face folder, one pair as what an engine for clusters starts from."""
