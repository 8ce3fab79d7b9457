"""What requests and answers look like; an unknown field is an error, and every schema has an example."""
