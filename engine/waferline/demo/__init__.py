"""The embedded model: a toy storyteller that ships with the package and can be trained again from this folder.

`grammar.py` writes the stories, `train.py` turns them into a tokenizer and a small Llama model, and `model/` holds the
result as an ordinary Hugging Face folder. `MODEL_CARD.md` says what the model is and how it was made.
"""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
