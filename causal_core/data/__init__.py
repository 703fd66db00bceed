"""What a triplet is: schema, rules, reading and writing, the leak check."""
