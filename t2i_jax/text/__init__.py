"""Text encoders, from captions to embeddings: tokenizers, T5, an encoder trained with the system,
stored embeddings.
"""
