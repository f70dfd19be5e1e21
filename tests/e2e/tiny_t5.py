"""A T5 of some thousand random weights, as transformers saves one, with a vocabulary of its own."""

from tests.parity import reference


def save(folder, captions):
    """Writes config.json, weights and spiece.model; the vocabulary is trained on the captions."""
    import sentencepiece

    reference.load("transformers")
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(2 * list(captions)),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
