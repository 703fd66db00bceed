"""From tokens to packed prefix trees."""
