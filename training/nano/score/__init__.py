"""How a piece is written: genres, harmony, melody, accompaniment and drums."""
