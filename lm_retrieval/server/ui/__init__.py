"""The web page under `/ui` (extra `ui`)."""
