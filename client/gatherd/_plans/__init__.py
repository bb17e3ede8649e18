"""The steps of each call: generators that yield effects."""
