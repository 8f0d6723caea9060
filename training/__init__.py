"""Programs that make checkpoints; the product never imports them."""
