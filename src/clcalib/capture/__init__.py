"""``nn.Module`` -> chain of units."""
