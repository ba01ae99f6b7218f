"""The size of the encoders of these tests."""

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    # Larger than usual: the vectors of a newly initialized model differ too little to reveal an error.
    "initializer_range": 0.2,
}
