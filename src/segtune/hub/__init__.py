"""The Hugging Face Hub: pushing, model cards, licenses."""
