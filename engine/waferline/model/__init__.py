"""What a model is: architectures as data, checkpoints, packing, tokenizers, and the compiler that makes programs."""
