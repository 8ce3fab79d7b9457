"""Engines we fit into when one machine is not enough; the rest of the package never needs them."""
