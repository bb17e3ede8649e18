"""How a call is done: generators that yield effects."""
