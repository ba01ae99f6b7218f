"""The size of the encoders that these tests make."""

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    # Larger than usual: vectors of a freshly initialised model differ too little to show an error.
    "initializer_range": 0.2,
}
