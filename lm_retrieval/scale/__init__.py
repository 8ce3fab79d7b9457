"""Engines this package fits into, each behind an extra; nothing else imports them."""
