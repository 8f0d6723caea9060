"""The bundled nano model: the music it learns from, and the training of its four parts."""
