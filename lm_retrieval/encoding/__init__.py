"""Encoders: pooling, dynamic padding, transforms."""
